"""The Hugging Face hub as target: a branch a revision, each made by one commit; main moves last."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from llmjp_train.errors import UserError
from llmjp_train.publish.release_folder import MANIFEST, SUMS, files_of
from llmjp_train.publish.upload import Standing, revision_name

Gated = Literal["auto", "manual"]


class HubTarget:
    """A model repository. Large files are stored first and dedupe by content, so that a cut upload goes on."""

    pointer = "main"

    def __init__(
        self,
        repo: str,
        *,
        private: bool = False,
        gated: Gated | None = None,
        api: HfApi | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """
        Args:
            repo: ``ORGANISATION/NAME``.
            private: make a new repository private.
            gated: readers ask first, and are let in at once (``auto``) or by hand (``manual``).
        """
        self.repo, self.where = repo, f"hf:{repo}"
        self._private, self._gated, self._say = private, gated, say
        self._api = api or HfApi()

    def look(self, revision: str) -> Standing:
        """See `Target.look`."""
        if constants.HF_HUB_OFFLINE:
            raise UserError(f"{self.where}: HF_HUB_OFFLINE is set: unset it to publish there")
        with self._told():
            self._api.whoami()
            sums = self._file(revision, SUMS)
            shown = self._file("main", MANIFEST)
            begun = sums is None and self._file(_staging(revision), SUMS) is not None
        pointer = None if shown is None else revision_name(json.loads(shown))
        return Standing(sums, begun, pointer, free=None)

    def send(self, release: Path, revision: str) -> None:
        """See `Target.send`.

        A branch cannot be made empty: it begins as main is. So files are committed to a staging branch, and the
        revision's branch is made from that commit.
        """
        with self._told():
            self._api.create_repo(self.repo, private=self._private, exist_ok=True)
            if self._gated:
                self._api.update_repo_settings(self.repo, gated=self._gated)
            staging = _staging(revision)
            self._api.create_branch(self.repo, branch=staging, exist_ok=True)
            self._commit(release, staging, revision)
            self._api.create_branch(self.repo, branch=revision, revision=staging)
            self._api.delete_branch(self.repo, branch=staging)

    def point(self, release: Path, revision: str) -> None:
        """See `Target.point`. Everything is stored already: this is a commit without an upload."""
        with self._told():
            self._commit(release, "main", revision)

    def _commit(self, release: Path, branch: str, revision: str) -> None:
        additions = [
            CommitOperationAdd(path.relative_to(release).as_posix(), path)
            for path in (*files_of(release), release / SUMS)
        ]
        # One at a time, so that what a cut try has stored is told and not sent again.
        for number, addition in enumerate(additions, 1):
            self._api.preupload_lfs_files(self.repo, [addition], revision=branch, free_memory=False)
            self._say(f"stored {number} of {len(additions)}: {addition.path_in_repo}")
        wanted = {addition.path_in_repo for addition in additions} | {".gitattributes"}
        gone = [
            CommitOperationDelete(name)
            for name in self._api.list_repo_files(self.repo, revision=branch)
            if name not in wanted
        ]
        self._api.create_commit(self.repo, [*additions, *gone], commit_message=revision, revision=branch)

    def _file(self, revision: str, name: str) -> str | None:
        try:
            path = self._api.hf_hub_download(self.repo, name, revision=revision)
        except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError):
            return None
        return Path(str(path)).read_text(encoding="utf-8")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """The hub's own words, with what to do."""
        try:
            yield
        except LocalTokenNotFoundError as error:
            raise UserError(
                f"{self.where}: there is no token: set HF_TOKEN, or run `hf auth login`"
            ) from error
        except (HFValidationError, ValueError) as error:
            raise UserError(f"{self.where}: {error}") from error
        except HfHubHTTPError as error:
            raise UserError(f"{self.where}: {error}. {_remedy(error)}") from error
        except OSError as error:
            raise UserError(
                f"{self.where} cannot be reached ({error}): with a network, run the same command again; it goes on"
            ) from error


def _staging(revision: str) -> str:
    return f"incoming-{revision}"


def _remedy(error: HfHubHTTPError) -> str:
    status: Any = getattr(error.response, "status_code", None)
    if status in (401, 403):
        return "The token needs the right to write there (HF_TOKEN)"
    if status in (402, 413, 507):
        return "The account has no room for it: make room, and run the same command again"
    return "Run the same command again: it goes on where this one ended"
