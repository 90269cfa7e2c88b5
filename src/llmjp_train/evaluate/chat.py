"""Items as a chat: the tokenizer's own template round each item, examples as earlier turns."""

import hashlib
from typing import Any

from llmjp_train.data.tokenizers import Tokenizer
from llmjp_train.errors import UserError


def template_sha256(tokenizer: Tokenizer, where: str) -> str:
    """sha256 of a tokenizer's chat template, for the record.

    Args:
        where: the run or folder, for messages.

    Raises:
        UserError: it has none, or several by name and none of them the default one.
    """
    template = getattr(tokenizer.hf, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise UserError(
            f"chat=true, but the tokenizer of {where} has no chat template (chat_template in tokenizer_config.json or "
            "chat_template.jinja): base models are evaluated without it, chat=false"
        )
    return hashlib.sha256(str(template).encode()).hexdigest()


def render(tokenizer: Tokenizer, turns: list[dict[str, Any]], *, answer_follows: bool) -> str:
    """Turns as the text that the model reads.

    Args:
        answer_follows: end where the model's answer begins; else in the middle of the last turn.

    Raises:
        UserError: the template refuses these turns.
    """
    from jinja2.exceptions import TemplateError

    try:
        text = tokenizer.hf.apply_chat_template(
            turns,
            tokenize=False,
            add_generation_prompt=answer_follows,
            continue_final_message=not answer_follows,
        )
    except TemplateError as error:
        roles = ", ".join(dict.fromkeys(str(turn["role"]) for turn in turns))
        raise UserError(f"the tokenizer's chat template refuses turns of {roles}: {error}") from error
    return str(text)
