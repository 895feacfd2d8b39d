"""The modules that take longest, so that a run in several processes begins with them.

A module runs in one process (`--dist loadfile`). One that begins late would keep its process busy long after the others have
ended.
"""

from __future__ import annotations

LONGEST_FIRST = """
sync_crashes daemon conda detached examples benchmarks preloading volume_programs machine_types environments
crashes data_cli description resources running_calls power_loss kinds hostile_functions survival
hostile_workers watching call_records payloads blocks demo screens packages concurrency admin build_limits
fetch_identity snapshots accounts two_machines project_requirements network browser terminal programs held
completion dial daemon_bounds confirmations endings secrets agent_files notifications types other_pythons
process_ends sync_engine cloudpickle_versions snapshot_crashes first_steps sandbox_limits program_state users
messages_fuzz claims two_users_environments project_distributions pages sync_databases flat_use sync calls
downloads lifeline sync_meanwhile two_users_machine host_paths cached restart file_semantics key_ends
two_users_calls notebook_display site program_children program_pools files landlock limits early_kills
storage_large usage login remote_host view file_routes many_connections
""".split()
"""Names of modules without `test_`, by the seconds that they took as root: those with 9 seconds or more."""
PLACES = {f"test_{name}": place for place, name in enumerate(LONGEST_FIRST)}
