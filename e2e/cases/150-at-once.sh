# 64 kubectl at the same time: gets, execs and logs
seq 64 | xargs -P 64 -I{} sh -c '
  case $(({} % 3)) in
    0) kubectl get pod box -o jsonpath="{.metadata.name} {}{\"\n\"}" ;;
    1) kubectl exec box -- echo "exec {}" ;;
    2) echo "in {}" | kubectl exec -i box -- cat ;;
  esac || echo "failed {}"' | sort
