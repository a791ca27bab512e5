"""The releases of TRL that the package is tested with, and a warning for others."""

import re
import warnings
from importlib.metadata import PackageNotFoundError, version


# First and last minor release. setup.cfg asks for the same, and a test compares the two.
TESTED_TRL = ((1, 16), (1, 16))


def warn_of_untested_trl() -> None:
    """
    Warn when the installed TRL is outside of [`TESTED_TRL`]: pip would not have installed it, so it came later or from
    its repository. Only its metadata are read, so that nothing heavy is imported.
    """
    try:
        installed = version("trl")
    except PackageNotFoundError:
        return
    first, last = TESTED_TRL
    release = re.match(r"(\d+)\.(\d+)", installed)
    if release is None or not first <= (int(release[1]), int(release[2])) <= last:
        known = f"trl>={first[0]}.{first[1]},<{last[0]}.{last[1] + 1}"
        warnings.warn(
            f"trl {installed} is installed, and trl_sdpo is tested with {known}: training may fail or differ from "
            f"what is documented. Run `pip install '{known}'`, or see whether a newer trl_sdpo knows this release "
            "(`pip install --upgrade trl-sdpo`)",
            stacklevel=3,  # the import of the package
        )
