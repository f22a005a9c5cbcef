"""Writes what the binary is made of as a CycloneDX document: sbom.py VERSION COMMIT TARGET > FILE.

The crates that `balance-sync-cli` links or builds with on TARGET, as Cargo.lock has them, with licences, checksums and who needs whom.
"""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import time
import tomllib
import uuid

ROOT = pathlib.Path(__file__).parent.parent.parent
PROGRAM = "balance-sync-cli"


def metadata(target):
    command = [os.environ.get("CARGO", "cargo"), "metadata", "--locked", "--format-version=1", "--filter-platform", target]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)


def linked(target):
    """Names and versions of what is built for the program alone: metadata has the features that all of the workspace wants together."""
    command = [os.environ.get("CARGO", "cargo"), "tree", "--locked", "--package", PROGRAM, "--edges", "normal,build"]
    command += ["--target", target, "--prefix", "none", "--format", "{p}"]
    lines = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    return {(words[0], words[1].removeprefix("v")) for words in map(str.split, lines) if words}


def needed(nodes, start, ids):
    """Everything below among these ids, without what only tests need."""
    found, waiting = {}, [start]
    while waiting:
        this = waiting.pop()
        if this in found:
            continue
        links = nodes[this]["deps"]
        kept = [link["pkg"] for link in links if link["pkg"] in ids and any(kind["kind"] != "dev" for kind in link["dep_kinds"])]
        found[this] = sorted(set(kept))
        waiting += kept
    return found


def purl(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def component(package, checksums, version):
    own = package["source"] is None
    entry = {
        "type": "application" if package["name"] == PROGRAM else "library",
        "bom-ref": purl(package),
        "name": "balance-sync" if package["name"] == PROGRAM else package["name"],
        "version": version if own else package["version"],
        "purl": purl(package),
    }
    if package["license"]:
        # Some still write a slash for "or".
        entry["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
    if checksum := checksums.get((package["name"], package["version"])):
        entry["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    if package["repository"]:
        entry["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
    return entry


def main():
    version, commit, target = sys.argv[1:]
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    checksums = {(one["name"], one["version"]): one["checksum"] for one in lock["package"] if "checksum" in one}
    found = metadata(target)
    packages = {package["id"]: package for package in found["packages"]}
    start = next(package["id"] for package in found["packages"] if package["name"] == PROGRAM)
    built = linked(target)
    ids = {id for id, package in packages.items() if (package["name"], package["version"]) in built}
    graph = needed({node["id"]: node for node in found["resolve"]["nodes"]}, start, ids)
    if set(graph) != ids:
        sys.exit(f"sbom: not reached: {sorted(ids - set(graph))}")
    components = [component(packages[one], checksums, version) for one in graph]
    program = next(one for one in components if one["type"] == "application")
    program["properties"] = [{"name": "commit", "value": commit}, {"name": "target", "value": target}]
    libraries = sorted((one for one in components if one is not program), key=lambda one: one["bom-ref"])
    dependencies = [{"ref": purl(packages[one]), "dependsOn": [purl(packages[below]) for below in graph[one]]} for one in graph]
    when = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        # The same for the same content.
        "serialNumber": f"urn:uuid:{uuid.UUID(hashlib.sha256(json.dumps([program, libraries]).encode()).hexdigest()[:32])}",
        "version": 1,
        "metadata": {"timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when)), "component": program},
        "components": libraries,
        "dependencies": sorted(dependencies, key=lambda one: one["ref"]),
    }
    json.dump(document, sys.stdout, indent=1)
    print()


main()
