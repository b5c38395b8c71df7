# what the user may not do is refused in the same words
kubectl --kubeconfig "$RESTRICTED" get secrets -n kube-system; echo "exit $?"
kubectl --kubeconfig "$RESTRICTED" delete node localhost; echo "exit $?"
kubectl --kubeconfig "$RESTRICTED" auth can-i list pods; echo "exit $?"
