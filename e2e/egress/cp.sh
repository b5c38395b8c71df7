# cp: 10 MB there and back
head -c 10000000 /dev/urandom > "$SCRATCH/there"
kubectl cp "$SCRATCH/there" box:/tmp/there
kubectl cp box:/tmp/there "$SCRATCH/back" >/dev/null
cmp "$SCRATCH/there" "$SCRATCH/back" && echo "the same"
kubectl exec box -- rm /tmp/there
