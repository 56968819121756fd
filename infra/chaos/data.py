"""Raw data that is corrupt, mislabelled, leaked or changed."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import requests
from PIL import Image
from processes import HOST, free_port

from chaos.faults import Outcome, expect, fault
from chaos.lab import Lab, Project, answers, kill, tree

RAW = "data/toyscapes/raw"


def checked(project: Project) -> str:
    """What index and validate say of raw data that must be refused."""
    project.run("dpgan", "index")
    return project.run("dpgan", "validate", code=2)


def names(output: str, files: list[Path]) -> None:
    """`PromiseError` unless a message names every file."""
    missing = [file.name for file in files if f"{file.parent.name}/{file.name}" not in output]
    expect(not missing, f"not named: {', '.join(missing)}, in {output[-3000:]}")


@fault(11, "a photo is cut off", "found before training: refused or left out, with file and reason")
def corrupt(lab: Lab) -> Outcome:
    with lab.project("corrupt") as project:
        photo = sorted((project.root / RAW / "images/train").iterdir())[3]
        content = photo.read_bytes()
        photo.unlink()
        photo.write_bytes(content[: len(content) // 2])
        output = checked(project)
        names(output, [photo])
        return Outcome("refused by `validate`, which names the file and the decoder's reason")


@fault(12, "label maps with an unknown id, in colours, of 16 bits, of another size", "refused: file, value, remedy")
def bad_labels(lab: Lab) -> Outcome:
    with lab.project("labels") as project:
        files = sorted((project.root / RAW / "labels/train").iterdir())[:4]
        maps: list[np.ndarray] = [
            np.full((32, 64), 200, np.uint8),
            np.zeros((32, 64, 3), np.uint8),
            np.full((32, 64), 300, np.uint16),
            np.full((16, 64), 7, np.uint8),
        ]
        for file, content in zip(files, maps, strict=True):
            file.unlink()
            Image.fromarray(content).save(file)
        output = checked(project)
        names(output, files)
        expect("200" in output, "the unknown id is not named")
        return Outcome("refused by `validate`: all four files, each with its reason and the remedy")


@fault(13, "validation photos leak into training, one of them mirrored", "refused; the pairs are listed")
def leak(lab: Lab) -> Outcome:
    with lab.project("leak") as project:
        images, *maps = (project.root / RAW / kind for kind in ("images", "labels", "instances"))
        first, second, *_ = sorted(file.name for file in (images / "train").iterdir())
        leaked, mirrored, *_ = sorted(file.name for file in (images / "val").iterdir())
        for folder in (images, *maps):
            for name in (first, second):
                (folder / "train" / name).unlink()
            shutil.copyfile(folder / "val" / leaked, folder / "train" / first)
            turned = Image.open(folder / "val" / mirrored).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            turned.save(folder / "train" / second)
        output = checked(project)
        names(output, [images / "train" / first, images / "train" / second, images / "val" / leaked])
        return Outcome("refused by `validate`: the copy and the mirrored copy, each with its validation photo")


@fault(40, "an instance map, or the evaluated classes, change", "another identity; what depends on it is made anew")
def identities(lab: Lab) -> Outcome:
    with lab.project("identity", lab.finished) as project:
        index = project.root / "build/index.parquet"
        before = index.read_bytes()
        instance = sorted((project.root / RAW / "instances/val").iterdir())[0]
        codes = np.asarray(Image.open(instance))
        objects = np.unique(codes[codes >= 1000])
        changed = np.where(codes == objects[0], objects[0] + 7, codes).astype(codes.dtype)
        instance.unlink()
        Image.fromarray(changed).save(instance)
        project.run("dvc", "commit", "--force", "data/toyscapes/dvc.yaml:render")  # else DVC renders it as it was
        output = project.run("dvc", "repro", "prepare")
        expect(index.read_bytes() != before, "the index does not know of the instance map")
        expect("Running stage 'prepare'" in output, "DVC does not prepare the data again")

        protocol = project.json("build/evaluation/scores.json")["protocol"]
        project.edit("data/toyscapes/dataset.yaml", "[250, 170, 30], evaluate: true", "[250, 170, 30]")
        project.run("dvc", "repro", "evaluate")
        expect(project.json("build/evaluation/scores.json")["protocol"] != protocol, "the protocol is the same")
        return Outcome("both changed the identities, and DVC ran the stages that depend on them")


@fault(15, "the object store is away", "`dvc push` fails with a sentence, the local copy stays; later it is pushed")
def store_away(lab: Lab) -> Outcome:
    with lab.project("store") as project:
        port = free_port()
        endpoint = f"http://{HOST}:{port}"
        keys = {"AWS_ACCESS_KEY_ID": "chaos", "AWS_SECRET_ACCESS_KEY": "chaos", "AWS_DEFAULT_REGION": "us-east-1"}
        project.run("dvc", "remote", "modify", "storage", "url", "s3://data")
        project.run("dvc", "remote", "modify", "storage", "endpointurl", endpoint)
        output = project.run("dvc", "push", code=None, env=keys)
        expect("Traceback" not in output and endpoint in output, f"without the store it says: {output[-1000:]}")
        expect("up to date" in project.run("dvc", "status", "prepare"), "the local copy is not whole")
        store = project.start(str(Path(sys.executable).with_name("moto_server")), "-H", HOST, "-p", str(port))
        store.until(lambda: answers(endpoint), "the store's answer")
        requests.put(f"{endpoint}/data", timeout=30)
        project.run("dvc", "push", env=keys)
        shutil.rmtree(project.root / ".dvc/cache")
        shutil.rmtree(project.root / "build/prepared")
        project.run("dvc", "pull", "prepare", env=keys)
        expect((project.root / "build/prepared/meta.json").exists(), "the data did not come back")
        kill(tree(store.process.pid))
        return Outcome("a sentence, and nothing lost; pushed when the store was there, and pulled again")
