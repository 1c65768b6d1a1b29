from __future__ import annotations

from appliance import errors
from appliance.errors import AnynodeError, CommandFailed, NotFound, Unavailable, cause_chain


class TestTree:
    def test_codes_are_unique_and_statuses_are_of_errors(self) -> None:
        kinds = [
            kind
            for kind in vars(errors).values()
            if isinstance(kind, type) and issubclass(kind, AnynodeError)
        ]
        assert len({kind.code for kind in kinds}) == len(kinds)
        assert all(400 <= kind.http_status < 600 for kind in kinds)

    def test_text_is_message_and_hint(self) -> None:
        assert str(NotFound("No image.", hint="List them.")) == "No image. List them."
        assert str(NotFound("No image.")) == "No image."

    def test_exact_code_defaults_to_that_of_the_class(self) -> None:
        assert NotFound("x").exact_code == "NotFound"
        exact = NotFound("x", code="InvalidInstanceID.NotFound")
        assert exact.exact_code == "InvalidInstanceID.NotFound"
        assert exact.code == "NotFound"


class TestCauseChain:
    def test_outermost_first_without_hints(self) -> None:
        root = OSError(2, "No such file")
        middle = CommandFailed("Could not start 'x'.", hint="Install it.")
        outer = Unavailable("Could not create the disk.")
        middle.__cause__, outer.__cause__ = root, middle
        assert cause_chain(outer) == (
            "Could not create the disk.",
            "Could not start 'x'.",
            "FileNotFoundError: [Errno 2] No such file",
        )

    def test_is_bounded(self) -> None:
        errors = [NotFound(str(number)) for number in range(20)]
        for number, error in enumerate(errors[1:]):
            errors[number].__cause__ = error
        assert cause_chain(errors[0]) == tuple("0123456789")

    def test_a_circle_is_told_once(self) -> None:
        error = NotFound("x")
        error.__cause__ = error
        assert cause_chain(error) == ("x",)
        cause = OSError("y")
        error.__cause__, cause.__cause__ = cause, error
        assert cause_chain(error) == ("x", "OSError: y")
