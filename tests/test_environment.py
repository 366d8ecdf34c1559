"""What the environment record says, and what it must not say."""

from __future__ import annotations

import getpass
import json
import platform
import re
import socket

from tailora.environment import PACKAGES, environment


def test_names_versions_and_nothing_personal():
    found = environment()
    assert set(found["packages"]) == set(PACKAGES)
    assert all(found["packages"][name] for name in ("torch", "transformers", "peft", "trl", "tailora"))
    assert found["python"] == platform.python_version()
    text = json.dumps(found)
    assert not re.search(r'"[^"]*/(home|root|tmp|usr)\b', text)
    words = set(re.findall(r"[\w.-]+", text))
    assert socket.gethostname() not in words
    assert getpass.getuser() not in words


def test_repeats():
    assert environment() == environment()
