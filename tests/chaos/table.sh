write_table() { printf '%s\n' "${rows[@]}"; }
