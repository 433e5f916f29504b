#!/bin/bash
# A pipeline of small programs, and the shell that waits for it. Numbers go through it all the time; the last part minds that
# none is lost or comes twice. The protocol is that of harness.py, but over a fifo, and reports are lines of the log.
answers=/agent/data/answers control=/agent/data/control
mkdir -p $answers
mkfifo $control
life=$(cat /proc/sys/kernel/random/uuid)

number=0
while sleep 0.05; do echo $((number += 1)); done |
  tee /agent/data/numbers | sed -u 's/$/ passed/' | grep --line-buffered passed | {
  wanted=0
  while read -r number _; do
    [ "$number" = $((wanted += 1)) ] || echo "got $number, not $wanted" >>/agent/data/problems
    echo "$number" >/agent/data/count
  done
} &

ask() {
  curl -sS --no-buffer -H "x-question: $1" -d '{}' "$ORB_PROXY_URL/$2" >"$answers/$1" 2>/agent/data/curl-error
  local code=$?
  { [ $code = 0 ] || cat /agent/data/curl-error; echo; } >"$answers/$1.end"
}

exec 3<>$control
echo ready
checks=0
while read -r command id kind <&3; do
  case $command in
  ask) ask "$id" "$kind" & ;;
  report)
    checks=$((checks + 1))
    problem=null
    [ ! -e /agent/data/problems ] || problem="\"$(head -1 /agent/data/problems)\""
    printf '{"report":"%s","life":"%s","counts":{"checks":%d,"numbers through the pipeline":%d},"problem":%s}\n' \
      "$id" "$life" $checks "$(cat /agent/data/count)" "$problem"
    ;;
  esac
done
