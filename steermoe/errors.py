"""The one exception for what the user can put right."""


class UserError(Exception):
    """Bad input, option or environment. The message names the file, the line and the fix; no traceback is shown."""
