"""Bytes of the pieces that Hugging Face vocabularies spell with stand-ins."""

import functools


@functools.cache
def byte_alphabet() -> dict[str, int]:
    """Return the printable stand-in of each byte in byte-level vocabularies, `Ġ` for a space.

    Example:
        >>> byte_alphabet()["Ġ"], byte_alphabet()["Ċ"], byte_alphabet()["a"]
        (32, 10, 97)
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    letters = {chr(b): b for b in printable}
    return letters | {chr(256 + n): b for n, b in enumerate(others)}


def piece_bytes(piece: str, *, byte_level: bool) -> bytes:
    r"""Return the bytes of a Hugging Face piece.

    Args:
        piece: as `convert_ids_to_tokens` gives it.
        byte_level: whether the vocabulary spells bytes with stand-ins (`Ġ`, `Ċ`), otherwise it
            marks spaces with `▁` and falls back to bytes as `<0x0A>`.

    Example:
        >>> piece_bytes("Ġshe", byte_level=True), piece_bytes("<0x0A>", byte_level=False)
        (b' she', b'\n')
    """
    if byte_level:
        alphabet = byte_alphabet()
        return b"".join(bytes([alphabet[c]]) if c in alphabet else c.encode() for c in piece)
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("▁", " ").encode()
