-- Redis and Valkey run Lua 5.1 with these globals. `require` is resolved when a script is assembled: see
-- producer/tallystream/storage/scripts.py.
std = "lua51"
read_globals = { "KEYS", "ARGV", "redis", "cmsgpack", "cjson", "bit" }
max_line_length = 120
