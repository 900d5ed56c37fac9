#!/usr/bin/env bash
# There is nothing to download: the corpus is yours.
echo "download: error: give your recordings and texts: ./run.sh --corpus FOLDER|TABLE.csv|LINES.jsonl" >&2
exit 1
