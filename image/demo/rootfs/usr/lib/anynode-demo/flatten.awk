# Print JSON, or the part of YAML that cloud settings use, as lines "path<TAB>value".
# The path is keys and list positions joined by "/": {"a": [{"b": 1}]} becomes "a/0/b<TAB>1".
# Understood YAML: block maps and lists, [..] and {..} on one line, quotes, comments, | and > texts.

{ whole = whole $0 "\n"; line[NR] = $0 }

END {
    text = whole
    sub(/^[ \t\r\n]+/, "", text)
    if (text ~ /^[{\[]/) { position = 1; flow("") } else yaml()
}

function emit(path, value) {
    gsub(/[\t\r\n]+/, " ", value)
    print path "\t" value
}

function below(path, key) { return path == "" ? key : path "/" key }

# One JSON or YAML flow value of `text` at `position`.
function flow(path,    c, key, n) {
    skip()
    c = substr(text, position, 1)
    if (c == "{") {
        position++
        for (skip(); substr(text, position, 1) != "}" && position <= length(text); skip()) {
            key = word(":")
            skip()
            position++
            flow(below(path, key))
            skip()
            if (substr(text, position, 1) == ",") position++
        }
        position++
    } else if (c == "[") {
        position++
        n = 0
        for (skip(); substr(text, position, 1) != "]" && position <= length(text); skip()) {
            flow(below(path, n++))
            skip()
            if (substr(text, position, 1) == ",") position++
        }
        position++
    } else emit(path, word(","))
}

function skip() { while (substr(text, position, 1) ~ /[ \t\r\n]/) position++ }

# A quoted or plain word; a plain one ends at `stop` or at a closing bracket.
function word(stop,    quote, c, result) {
    quote = substr(text, position, 1)
    result = ""
    if (quote == "\"" || quote == "'") {
        for (position++; position <= length(text); position++) {
            c = substr(text, position, 1)
            if (c == quote) { position++; return result }
            if (c == "\\" && quote == "\"") {
                c = substr(text, ++position, 1)
                if (c == "n") c = "\n"
                else if (c == "t") c = "\t"
                else if (c == "u") { c = character(substr(text, position + 1, 4)); position += 4 }
            }
            result = result c
        }
        return result
    }
    while (position <= length(text) && (c = substr(text, position, 1)) != stop && c !~ /[]}\n]/) {
        result = result c
        position++
    }
    sub(/[ \t\r]+$/, "", result)
    return result == "null" ? "" : result
}

function character(digits,    i, code) {
    code = 0
    for (i = 1; i <= 4; i++) code = code * 16 + index("0123456789abcdef", tolower(substr(digits, i, 1))) - 1
    return code < 128 ? sprintf("%c", code) : "?"
}

function yaml(    i, column, content) {
    depth = 0
    pending = ""
    for (i = 1; i <= NR; i++) {
        content = line[i]
        sub(/\r$/, "", content)
        if (content ~ /^[ \t]*(#|$)/ || content ~ /^(---|\.\.\.)/) continue
        match(content, /^ */)
        column = RLENGTH
        if (block != "") {
            if (column > block_column) { block_text = block_text substr(content, column + 1) " "; continue }
            emit(block, block_text)
            block = ""
        }
        item(column, substr(content, column + 1))
    }
    if (block != "") emit(block, block_text)
}

# One YAML line without its indentation; `pending` is the path that a deeper line belongs to.
function item(column, content,    key) {
    if (content ~ /^-( |$)/) {
        while (depth && at[depth] > column) depth--
        if (!depth || at[depth] != column || !is_list[depth]) {
            depth++
            at[depth] = column; is_list[depth] = 1; prefix[depth] = pending; count[depth] = 0
        }
        pending = below(prefix[depth], count[depth]++)
        match(content, /^- */)
        if (length(content) > RLENGTH) item(column + RLENGTH, substr(content, RLENGTH + 1))
        return
    }
    if (content !~ /^("[^"]*"|'[^']*'|[^"'\[{][^:]*([^ :]:[^ :]+)*) *:( |$)/) { scalar(pending, content); return }
    while (depth && (at[depth] > column || (at[depth] == column && is_list[depth]))) depth--
    if (!depth || at[depth] != column) {
        depth++
        at[depth] = column; is_list[depth] = 0; prefix[depth] = pending
    }
    text = content
    position = 1
    if (content ~ /^["']/) {
        key = word(":")
        skip()
        content = substr(content, position + 1)
    } else {
        match(content, / *:( |$)/)
        key = substr(content, 1, RSTART - 1)
        content = substr(content, RSTART + RLENGTH)
    }
    sub(/^[ ]+/, "", content)
    pending = below(prefix[depth], key)
    if (content ~ /^[|>][-+]?$/) { block = pending; block_column = column; block_text = "" }
    else if (content != "" && content !~ /^#/) scalar(pending, content)
}

function scalar(path, content) {
    text = content
    position = 1
    if (content ~ /^[{\["']/) { flow(path); return }
    sub(/ +#.*$/, "", content)
    sub(/ +$/, "", content)
    emit(path, content)
}
