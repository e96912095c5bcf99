"""What an exception says, in a line, where it says nothing itself or too much."""


def words_of(error: BaseException) -> str:
    """What an exception says or, where it says nothing, what it was raised for says; else its type."""
    each: BaseException | None = error
    while each is not None:
        if words := _own_words(each):
            return words
        each = each.__cause__ or each.__context__
    return type(error).__name__


def _own_words(error: BaseException) -> str:
    if callable(problems := getattr(error, "errors", None)):  # of pydantic, whose first line is their number
        said = "; ".join(str(problem["msg"]).removeprefix("Value error, ") for problem in problems())
    else:
        said = str(error)
    return " ".join(said.split())[:500]
