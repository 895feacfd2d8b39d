"""Where a call goes: hosts behind one contract (`contract.Host`). Importable on every platform."""
