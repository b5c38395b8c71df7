# watch: bookmarks and initial events (WatchList), and kubectl's own watch
kubectl create configmap seen --from-literal=n=0
(for n in 1 2 3; do kubectl patch configmap seen --type=merge -p "{\"data\":{\"n\":\"$n\"}}" >/dev/null; done) &
kubectl get --raw "/api/v1/namespaces/$NAMESPACE/configmaps?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=3&fieldSelector=metadata.name%3Dseen" > "$SCRATCH/events"
wait
python3 - "$SCRATCH/events" <<'PY'
import json, sys
last, bookmarks = None, 0
for line in open(sys.argv[1]):
    event = json.loads(line)
    if event["type"] == "BOOKMARK":
        bookmarks += 1
    else:
        last = event["object"]["data"]["n"]
print("bookmarks:", bookmarks > 0, "last:", last)
PY
python3 - <<'PY'
import subprocess
watch = subprocess.Popen(["kubectl", "get", "configmap", "seen", "--watch", "--output-watch-events", "--no-headers"],
                         stdout=subprocess.PIPE, text=True)
print(watch.stdout.readline().split()[:2])
for n in (4, 5):
    subprocess.run(["kubectl", "label", "configmap", "seen", f"n={n}", "--overwrite"], check=True, stdout=subprocess.DEVNULL)
    print(watch.stdout.readline().split()[:2])
subprocess.run(["kubectl", "delete", "configmap", "seen"], check=True)
print(watch.stdout.readline().split()[:2])
watch.terminate()
PY
