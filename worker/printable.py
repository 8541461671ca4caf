"""Text of anybody's on a terminal or in a log: readable, in one line, and without a say over either."""


def printable(line: str) -> str:
    """One line that can't steer a terminal: an id or an error may hold anything.

    Each character is escaped by itself: one newline mustn't make what stands around it unreadable.
    """
    if line.isprintable():
        return line
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in line)
