"""How training processes come to be; here, on one machine."""
