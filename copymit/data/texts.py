"""Text files as people have them: UTF-8 with or without a mark, lines that end in LF.

Captions, class names and prompts hold U+2028, U+2029 and U+0085, which `str.splitlines`
takes for ends of lines; here they are characters like others.
"""


def decode_text(data: bytes, where: str) -> str:
    """Decodes UTF-8, without the byte order mark that some editors put first.

    Args:
      where: what errors call the text.
    Raises:
      ValueError: if it is not UTF-8; names the line.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{where}, line {line} is not UTF-8 text ({error.reason}): save it as UTF-8"
        ) from error


def split_lines(text: str) -> list[str]:
    """Splits text at LF, also after CR, and nowhere else."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]
