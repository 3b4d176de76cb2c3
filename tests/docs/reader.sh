#!/usr/bin/env bash
# What a reader does who types a command that stays in the foreground: go on in another terminal,
# once it says that it serves; and press Ctrl-C before the next one at the same mount point.
# Called as `reader.sh PROGRAM ARGUMENT...`; what PROGRAM serves is its last argument.
set -u

where=$(printf '%s' "${*: -1}" | tr / _)
log=$TERMINALS/$where.log
if [ -e "$TERMINALS/$where.pid" ]; then
    pid=$(cat "$TERMINALS/$where.pid")
    kill -INT "$pid" 2>/dev/null && tail --pid="$pid" -s 0.02 -f /dev/null
fi
: >"$log"
"$@" >>"$log" 2>&1 </dev/null &
pid=$!
echo "$pid" >"$TERMINALS/$where.pid"
until grep -Eq 'stop it with|; see: ' "$log"; do
    if ! kill -0 "$pid" 2>/dev/null; then
        cat "$log"
        wait "$pid"
        exit
    fi
    sleep 0.02
done
cat "$log"
disown "$pid"
