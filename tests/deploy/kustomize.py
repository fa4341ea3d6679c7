"""As much of Kustomize as the overlays here use, so that what would be applied can be looked at without kubectl."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]
_KNOWN = {"apiVersion", "kind", "namespace", "labels", "resources", "configMapGenerator", "images", "patches"}


def render(folder: Path) -> list[Manifest]:
    """Everything that ``kubectl apply -k folder`` would send, without the hashes in names."""
    kustomization: dict[str, Any] = yaml.safe_load((folder / "kustomization.yaml").read_text())
    unknown = kustomization.keys() - _KNOWN
    assert not unknown, f"teach this file {unknown}"
    manifests: list[Manifest] = []
    for name in kustomization["resources"]:
        path = folder / name
        manifests += render(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    for generator in kustomization.get("configMapGenerator", []):
        _generate(manifests, generator, folder, kustomization.get("namespace"))
    for patch in kustomization.get("patches", []):
        _patch(manifests, yaml.safe_load((folder / patch["path"]).read_text()), patch["target"])
    for manifest in manifests:
        if "namespace" in kustomization and manifest["kind"] != "Namespace":
            manifest["metadata"]["namespace"] = kustomization["namespace"]
        for label in kustomization.get("labels", []):
            manifest["metadata"].setdefault("labels", {}).update(label["pairs"])
        for image in kustomization.get("images", []):
            _tag(manifest, image["name"], image["newTag"])
    return manifests


def _generate(manifests: list[Manifest], generator: dict[str, Any], folder: Path, namespace: str | None) -> None:
    data = {name: (folder / name).read_text() for name in generator["files"]}
    if generator.get("behavior") == "replace":
        (found,) = (m for m in manifests if m["kind"] == "ConfigMap" and m["metadata"]["name"] == generator["name"])
        found["data"] = data
        return
    metadata = {"name": generator["name"], "namespace": generator.get("namespace", namespace)}
    manifests.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})


def _patch(manifests: list[Manifest], patch: Manifest, target: dict[str, str]) -> None:
    matched = False
    for index, manifest in enumerate(manifests):
        name = manifest["metadata"]["name"]
        if manifest["kind"] == target["kind"] and re.fullmatch(target.get("name", ".*"), name):
            merged = merge(manifest, patch)
            merged["metadata"]["name"] = name
            manifests[index] = merged
            matched = True
    assert matched, f"{target} is nowhere"


def merge(base: Any, patch: Any) -> Any:
    """A strategic merge: mappings by key, lists of named things (or of mount paths) by that, other lists replaced."""
    if isinstance(base, dict) and isinstance(patch, dict):
        result = dict(base)
        for key, value in patch.items():
            result[key] = merge(base[key], value) if key in base else copy.deepcopy(value)
        return result
    if isinstance(base, list) and isinstance(patch, list):
        for key in ("mountPath", "name"):
            if all(isinstance(item, dict) and key in item for item in (*base, *patch)):
                before = {item[key]: item for item in base}
                named = [merge(before.pop(item[key]), item) if item[key] in before else item for item in patch]
                return [*named, *before.values()]  # in the order that kustomize gives them
    return copy.deepcopy(patch)


def _tag(node: Any, name: str, tag: str) -> None:
    if isinstance(node, dict):
        if node.get("image") == name:
            node["image"] = f"{name}:{tag}"
        for value in node.values():
            _tag(value, name, tag)
    elif isinstance(node, list):
        for value in node:
            _tag(value, name, tag)
