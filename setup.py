"""Installs the `steermoe` library; `tools/setup.sh` makes the whole environment, `tools/requirements.txt` pins it."""
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
# The library's own; what follows "# extras" serves the optional parts below and the tests.
own = (here / "tools" / "requirements.txt").read_text().partition("# extras")[0]
requirements = [line.split("#")[0].strip() for line in own.splitlines()]

setup(
    name="steermoe",
    version="0.1.0",
    description="Frozen audio encoder + frozen LLM, joined by a small trained mixture-of-experts steering module",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["steermoe", "steermoe.*"]),
    package_data={
        "steermoe": [
            "models.yaml", "sizes.yaml", "presets/*.yaml", "presets/variants/*.yaml", "pretrained/tiny/*", "serve/page/*"
        ]
    },  # fmt: skip
    install_requires=[requirement for requirement in requirements if requirement],
    extras_require={
        "quantization": ["bitsandbytes>=0.50"],  # llm_conf.quantization: int8, int4
        "constrained": ["llguidance>=1.0"],  # chat --constrained true
        "serve": ["starlette>=0.49", "uvicorn>=0.35", "websockets", "python-multipart>=0.0.20", "prometheus-client"],
        "kokoro": ["kokoro-onnx>=0.6", "misaki[zh]>=0.9"],  # egs/kokoro; misaki for Mandarin
    },
    entry_points={"console_scripts": ["steermoe=steermoe.bin.__main__:main"]},
)
