"""Flags of absl, whose flag files may begin with a byte-order mark, as some editors write it."""

from collections.abc import Sequence

from absl import flags

_MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"


class FlagValues(flags.FlagValues):
    """A set of flags; see `absl.flags.FlagValues`."""

    def read_flags_from_files(self, argv: Sequence[str], force_gnu: bool = True) -> list[str]:
        """As absl's; the mark goes, and with it the line that it hid if that is a comment or empty.

        Raises:
          flags.Error: A flag file cannot be read, or names another in the line with the mark, which
            is not looked for any more.
        """
        found = []
        for text in super().read_flags_from_files(argv, force_gnu):
            line = text.removeprefix(_MARK).strip() if text.startswith(_MARK) else text
            if line is not text and line.lstrip("-").startswith("flagfile"):
                raise flags.Error(f"{line} follows a byte-order mark; put an empty line before it")
            if line is text or (line and not line.startswith(("#", "//"))):
                found.append(line)
        return found
