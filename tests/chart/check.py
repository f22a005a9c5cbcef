"""Checks the Helm chart: lint and rendering by Helm itself, Kubernetes's schemas, checkov, and renderings that are kept.

Run by `make chart`, in an environment with requirements.txt. REWRITE=1 writes the kept renderings anew.
"""

import copy
import difflib
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile

import helm_python as helm
import kubernetes_validate
import yaml

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
CHART = ROOT / "deploy/helm/balance-sync"
RULES = ROOT / "deploy/observability/rules.yaml"
DASHBOARD = ROOT / "deploy/observability/grafana-dashboard.json"
DIST = ROOT / "target/dist"
# The oldest that Chart.yaml allows, and the newest whose schemas are known.
KUBERNETES = ["1.27", kubernetes_validate.latest_version()]
# Kinds of operators: no schema of theirs is at hand.
FOREIGN = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}
SKIPPED_BY_CHECKOV = {
    "CKV_K8S_35": "the ledger's Secret is taken as it is, by envFrom",
    "CKV_K8S_43": "an image by digest: image.digest, which only the one who pushed it knows",
    "CKV_K8S_15": "imagePullPolicy Always would make a restart depend on the registry",
    "CKV_K8S_8": "the test's pod ends by itself, a probe has nothing to ask",
    "CKV_K8S_9": "as above",
}

# Values that must be refused, each with a part of what is said.
REFUSED = [
    ({"admin": {"tokenSecret": ""}}, "admin.tokenSecret"),
    ({"admin": {"operatorTokenKey": "", "readTokenKey": ""}}, "without a token"),
    ({"settings": {"supervisor": {"stop_deadline": "10m"}}}, "stopDeadlineSeconds"),
    ({"settings": {"admin": {"listen": "0.0.0.0:1"}}}, "admin.port"),
    ({"autoscaling": {"kind": "keda"}}, "autoscaling.keda.prometheusAddress"),
    ({"autoscaling": {"kind": "vpa"}}, "/autoscaling/kind"),
    ({"redisDirectory": {"name": "a"}}, "redisDirectory.entries"),
    ({"redisDirectory": {"configMap": "directory"}}, "redisDirectory.name"),
    ({"redisDirectory": {"name": "a b"}}, "/redisDirectory/name"),
    ({"replicas": 3}, "replicas"),
    ({"replicaCount": 0}, "/replicaCount"),
    ({"image": {"digest": "latest"}}, "/image/digest"),
    ({"ledger": {"secretVariables": [{"name": "REDIS_PASSWORD"}]}}, "/ledger/secretVariables/0"),
    ({"stopMarginSeconds": 0}, "/stopMarginSeconds"),
    ({"profile": "dark"}, "/profile"),
    ({"profile": "shadow"}, "shadow.redisSecret"),
    ({"settings": {"worker": {"mode": "shadow"}}}, "set profile instead"),
    ({"test": {"accept": "unknown"}}, "/test/accept"),
    ({"podDisruptionBudget": {"maxUnavailable": 0}}, "/podDisruptionBudget/maxUnavailable"),
]

failures = []


def fail(text):
    failures.append(text)
    print(f"FAILED: {text}")


def merged(base, over):
    result = copy.deepcopy(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def render(archive, values):
    """Helm validates the values against values.schema.json, as `helm install` does, then renders."""
    with helm.Chart.load(archive) as chart:
        chart.validate_schema(chart.merge_values(values))
        rendered = chart.render(values, name="balance-sync", namespace="ledger", is_install=True)
    texts = {path.split("/", 1)[1]: text for path, text in sorted(rendered.items())}
    return {path: text for path, text in texts.items() if path.endswith(".yaml") and text.strip()}


def documents(texts):
    return [document for text in texts.values() for document in yaml.safe_load_all(text) if document]


def kept(texts):
    """What is compared: files that stand in the chart as they are aren't repeated."""
    out = []
    for path, text in texts.items():
        text = text.strip("\n")
        for file, marker in [(RULES, "groups:"), (DASHBOARD, '{\n      "title"')]:
            indent = 2 if file == RULES else 4
            body = "\n".join(" " * indent + line if line else "" for line in file.read_text().strip("\n").split("\n"))
            plain = "\n".join(line.rstrip() for line in text.split("\n"))
            if body in plain:
                text = plain.replace(body, f"{' ' * indent}# (the text of {file.relative_to(ROOT)})")
        out.append(f"---\n# {path}\n{text}\n")
    return "".join(out)


def one(found, kind, component=None):
    matching = [
        document
        for document in found
        if document["kind"] == kind
        and (component is None or document["metadata"]["labels"].get("app.kubernetes.io/component") == component)
    ]
    return matching[0] if matching else None


def check_sense(name, found):
    """What no schema knows."""
    deployment = one(found, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    worker = pod["containers"][0]
    variables = {variable["name"]: variable.get("value") for variable in worker["env"]}
    deadline = int(variables["BALANCE_SYNC__SUPERVISOR__STOP_DEADLINE"].removesuffix("s"))
    if pod["terminationGracePeriodSeconds"] < deadline + 5:
        fail(f"{name}: the grace period isn't above the drain")
    if len(variables) != len(worker["env"]):
        fail(f"{name}: a variable stands twice")
    if variables.get("BALANCE_SYNC__WORKER__MODE") == "shadow":
        others = [kind for kind in ["PodDisruptionBudget", "HorizontalPodAutoscaler", "ScaledObject"] if one(found, kind)]
        if others or deployment["spec"]["replicas"] != 1:
            fail(f"{name}: a shadow is one worker, without {', '.join(others) or 'others'}")
    if test := one(found, "Pod"):
        service, ready = one(found, "Service"), test["spec"]["initContainers"][1]["args"][1]
        if ready != f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}/readyz":
            fail(f"{name}: helm test asks {ready}, which is not the Service")
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    for kind in ["Service", "PodDisruptionBudget", "NetworkPolicy"]:
        if chosen := one(found, kind):
            selector = chosen["spec"].get("podSelector") or chosen["spec"]["selector"]
            if not (selector.get("matchLabels") or selector).items() <= labels:
                fail(f"{name}: {kind} doesn't select the workers")
    if monitor := one(found, "ServiceMonitor"):
        service = one(found, "Service")
        if not monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items():
            fail(f"{name}: the ServiceMonitor doesn't select the Service")
        job = monitor["spec"]["endpoints"][0]["relabelings"][0]["replacement"]
        if "balance-sync" not in job:
            fail(f"{name}: BalanceSyncWorkerDown doesn't know the job {job}")
        for kind in ["ScaledObject", "HorizontalPodAutoscaler"]:
            if (scaler := one(found, kind)) and job not in str(scaler):
                fail(f"{name}: {kind} asks for another job than {job}")
    if rules := one(found, "PrometheusRule"):
        if rules["spec"] != yaml.safe_load(RULES.read_text()):
            fail(f"{name}: PrometheusRule differs from {RULES.name}")
    for config in found:
        text = config.get("data", {}).get("balance-sync.json")
        if text is not None and text.strip() != DASHBOARD.read_text().strip():
            fail(f"{name}: the dashboard differs from {DASHBOARD.name}")


def check_schemas(name, found):
    for document in found:
        kind = document["kind"]
        if kind in FOREIGN:
            continue
        for version in KUBERNETES:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
                fail(f"{name}: {kind}, Kubernetes {version}: {error}")


def check_by_checkov(name, folder):
    checkov = pathlib.Path(sys.executable).parent / "checkov"
    command = [checkov, "--directory", folder, "--framework", "kubernetes", "--quiet", "--compact", "--skip-download"]
    command += ["--skip-check", ",".join(SKIPPED_BY_CHECKOV)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        fail(f"{name}: checkov\n{done.stdout}{done.stderr}")


def check_golden(name, text):
    path = HERE / "golden" / f"{name}.yaml"
    if os.environ.get("REWRITE"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    before = path.read_text() if path.exists() else ""
    if before != text:
        lines = difflib.unified_diff(before.splitlines(), text.splitlines(), f"golden/{name}.yaml", "now", lineterm="")
        fail(f"{name}: rendered otherwise than before; REWRITE=1 make chart takes it over\n" + "\n".join(lines))


def lint(archive, values):
    findings = helm.lint(archive, values, strict=True, namespace="ledger")
    # An icon is a matter of taste.
    return [m for m in findings["messages"] if m["severity"] >= 2 and "icon" not in m["error"]]


def main():
    print(f"Helm {helm.helm_sdk_version()}, schemas of Kubernetes {', '.join(KUBERNETES)}")
    DIST.mkdir(parents=True, exist_ok=True)
    # What is checked is what is shipped.
    archive = helm.package(CHART, destination=DIST)
    with tarfile.open(archive) as tar:
        for file in [RULES, DASHBOARD]:
            if tar.extractfile(f"balance-sync/files/{file.name}").read() != file.read_bytes():
                fail(f"{archive}: {file.name} isn't in it as it is")
    print(f"packaged: {pathlib.Path(archive).relative_to(ROOT)}")
    files = sorted((HERE / "values").glob("*.yaml"))
    for file in files:
        name, values = file.stem, yaml.safe_load(file.read_text())
        for message in lint(archive, values):
            fail(f"{name}: lint: {message['path']}: {message['error']}")
        texts = render(archive, values)
        found = documents(texts)
        check_schemas(name, found)
        check_sense(name, found)
        with tempfile.TemporaryDirectory() as folder:
            pathlib.Path(folder, "rendered.yaml").write_text("\n---\n".join(texts.values()))
            check_by_checkov(name, folder)
        check_golden(name, kept(texts))
        kinds = [document["kind"] for document in found]
        print(f"{name}: {len(kinds)} objects, {sum(kind in FOREIGN for kind in kinds)} of them without a schema at hand")

    smallest = yaml.safe_load((HERE / "values/smallest.yaml").read_text())
    for over, expected in REFUSED:
        try:
            render(archive, merged(smallest, over))
            fail(f"{over} was accepted")
        except helm.HelmError as error:
            if expected not in str(error):
                fail(f"{over}: {error}, instead of something about {expected}")
    print(f"{len(REFUSED)} wrong values are refused")

    if failures:
        sys.exit(f"chart: {len(failures)} failures")
    print("chart: good")


main()
