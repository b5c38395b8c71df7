# 64 kubectl at the same time: gets and execs, with and without input
seq 64 | xargs -P 64 -I{} sh -c '
  case $(({} % 3)) in
    0) kubectl get pod box -o jsonpath="{.metadata.name}" ;;
    1) kubectl exec box -c box -- echo exec ;;
    2) echo in | kubectl exec -i box -c box -- cat ;;
  esac > {}.out || echo failed >> {}.out'
for n in $(seq 64); do echo "$n: $(cat $n.out)"; done
