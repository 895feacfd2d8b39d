"""The messages of `controller.IsolateController`: the fields of 2023 and of today, which have the same numbers."""

from __future__ import annotations

from atoll.controller.fields import classes

IN_PROGRESS, SUCCESS, INTERNAL_FAILURE = range(3)
"""States of a run."""
BUILDER, BRIDGE, USER = range(3)
"""Sources of a log entry."""
INFO, ERROR, STDOUT, STDERR = 2, 4, 5, 6
"""Levels of a log entry."""
PRIVATE, PUBLIC, SHARED = range(3)
"""Who may call an application."""
AUTHS = ("private", "public", "shared")
SCOPES = ("ADMIN", "API")

messages = classes(
    """
Empty:
SerializedObject: 1 str method, 2 bytes definition, 3 bool was_it_raised, 4 str stringized_traceback, 5 str exception_type_name, 6 str exception_message
Log: 1 str message, 2 i32 source, 3 i32 level, 4 Timestamp timestamp
EnvironmentDefinition: 1 str kind, 2 Struct configuration, 3 bool force
File: 1 str hash, 2 str relative_path
SecretsConfig: 1 str* names
VolumeMount: 1 str volume_name, 2 str mount_path
HealthCheck: 1 str path, 2 i32 start_period_seconds, 3 i32 timeout_seconds, 4 i32 failure_threshold, 5 bool call_regularly, 6 bool allow_on_busy, 7 i32 method
MachineRequirements: 1 str machine_type, 2 i32 keep_alive, 3 str base_image, 4 i32 exposed_port, 5 str scheduler, 6 i32 max_multiplexing, 8 Struct scheduler_options, 9 i32 max_concurrency, 10 i32 min_concurrency, 11 str* machine_types, 12 i32 num_gpus, 13 i32 request_timeout, 14 i32 startup_timeout, 15 i32 concurrency_buffer, 16 i32 concurrency_buffer_perc, 17 i32 scaling_delay_seconds, 18 str* valid_regions, 19 i32 metrics_port, 20 i32 request_start_timeout
HostedRun: 1 EnvironmentDefinition* environments, 2 MachineRequirements machine_requirements, 3 SerializedObject function, 4 SerializedObject setup_func, 5 File* files, 6 str environment_name, 7 str application_name, 8 i32 auth_mode, 9 bool fetch_openapi, 10 str* data_mounts, 11 SecretsConfig secrets, 12 str entrypoint, 13 bool run_on_main_thread, 14 bool build_environment, 15 str env_id, 16 HealthCheck health_check_config, 17 VolumeMount* volumes
HostedRunStatus: 1 i32 state
ServiceURLs: 1 str playground, 2 str run, 3 str queue, 4 str ws, 5 str log
HostedRunResult: 1 str run_id, 2 HostedRunStatus status, 3 Log* logs, 4 SerializedObject return_value, 5 ServiceURLs service_urls, 6 str env_id
BuildEnvironmentRequest: 1 EnvironmentDefinition* environments, 2 MachineRequirements machine_requirements, 3 File* files, 4 str environment_name, 5 str application_name, 6 SecretsConfig secrets
BuildEnvironmentResult: 1 str env_id, 2 HostedRunStatus status, 3 Log* logs
RegisterApplicationRequest: 1 EnvironmentDefinition* environments, 2 MachineRequirements machine_requirements, 3 SerializedObject function, 4 SerializedObject setup_func, 5 str application_name, 6 i32 auth_mode, 7 i32 max_concurrency, 8 Struct metadata, 9 i32 deployment_strategy, 10 bool scale, 11 bool private_logs, 12 File* files, 13 str source_code, 14 str health_check_path, 15 str environment_name, 16 HealthCheck health_check_config, 17 i32* skip_retry_conditions, 18 i32 termination_grace_period_seconds, 19 bool fetch_openapi, 20 str* data_mounts, 21 str entrypoint, 22 SecretsConfig secrets, 23 bool run_on_main_thread, 24 bool build_environment, 25 str env_id, 26 str retry_config, 27 bool attach_to_deployment, 28 VolumeMount* volumes
Registered: 1 str application_id
RegisterApplicationResult: 1 Log* logs, 2 Registered result, 3 ServiceURLs service_urls, 4 str env_id
KeyPolicy: 1 str* permissions
CreateUserKeyRequest: 1 i32 scope, 2 str alias, 5 str policy_preset, 6 KeyPolicy policy
CreateUserKeyResponse: 1 str key_secret, 2 str key_id
UserKey: 1 str key_id, 2 Timestamp created_at, 3 i32 scope, 4 str alias
ListUserKeysResponse: 1 UserKey* user_keys
RevokeUserKeyRequest: 1 str key_id
WorkerStatusListRequest: 1 Timestamp start_time, 2 Timestamp end_time, 3 str user_id, 4 str machine_type
WorkerStatus: 1 str worker_id, 2 Timestamp start_time, 3 Timestamp end_time, 4 Duration duration, 5 str user_id, 6 str machine_type
WorkerStatusListResponse: 1 WorkerStatus* worker_status
UpdateApplicationRequest: 1 str application_name, 2 i32 keep_alive, 3 i32 max_multiplexing, 4 i32 max_concurrency, 5 i32 min_concurrency, 6 str* valid_regions, 7 str* machine_types, 8 i32 request_timeout, 9 i32 startup_timeout, 10 i32 concurrency_buffer, 11 i32 concurrency_buffer_perc, 12 i32 scaling_delay_seconds, 13 str environment_name, 14 i32 request_start_timeout
AliasInfo: 1 str alias, 2 str revision, 3 i32 auth_mode, 4 i32 max_concurrency, 5 i32 max_multiplexing, 6 i32 keep_alive, 7 i32 active_runners, 8 i32 min_concurrency, 9 str* machine_types, 10 i32 request_timeout, 11 i32 startup_timeout, 12 str* valid_regions, 13 i32 concurrency_buffer, 14 i32 concurrency_buffer_perc, 15 i32 scaling_delay_seconds, 16 str environment_name, 17 bool is_rolling, 18 i32 request_start_timeout
AliasResult: 1 AliasInfo alias_info
ListAliasesRequest: 1 str environment_name
ListAliasesResult: 1 AliasInfo* aliases
ListApplicationsRequest: 1 str application_name, 2 str environment_name
ApplicationInfo: 1 str application_id, 2 i32 max_concurrency, 3 i32 max_multiplexing, 4 i32 keep_alive, 6 i32 active_runners, 7 i32 min_concurrency, 8 str* machine_types, 9 i32 request_timeout, 10 i32 startup_timeout, 11 str* valid_regions, 12 i32 concurrency_buffer, 13 Timestamp created_at, 14 i32 concurrency_buffer_perc, 15 i32 scaling_delay_seconds, 16 str environment_name, 17 i32 request_start_timeout
ListApplicationsResult: 1 ApplicationInfo* applications
DeleteApplicationRequest: 1 str application_id
RolloutApplicationRequest: 1 str application_name, 2 bool force, 3 str environment_name
SetAliasRequest: 1 str alias, 2 str revision, 3 i32 auth_mode, 4 str environment_name, 5 i32 deployment_strategy
DeleteAliasRequest: 1 str alias, 2 str environment_name
DeleteAliasResult: 1 str revision
RegisterCronRequest: 1 str application_id, 2 str cron
RegisteredCron: 1 str cron_id
RegisterCronResult: 1 RegisteredCron result
CronRequest: 1 str cron_id
Cron: 1 str cron_string, 2 str cron_id, 3 Timestamp next_run, 4 bool is_active
ListCronsResult: 1 Cron* crons
Activation: 1 str activation_id, 2 Timestamp started_at, 3 Timestamp finished_at
ListActivationsResult: 1 Activation* activations
GetActivationLogsRequest: 1 str cron_id, 2 str activation_id
GetActivationLogsResult: 1 Log* logs
LogsFilter: 1 i32 lines, 2 str url, 3 Timestamp from_time, 4 Timestamp to_time
GetLogsRequest: 1 bool follow, 2 LogsFilter filter
GetLogsResult: 1 Log log_entry
SetSecretRequest: 1 str name, 2 str value, 3 str environment_name, 4 bool default_exposed
ListSecretsRequest: 1 str environment_name
Secret: 1 str name, 2 Timestamp created_time, 3 str environment_name, 4 bool default_exposed
ListSecretsResponse: 1 Secret* secrets
RunnerInfo: 1 str runner_id, 2 i32 in_flight_requests, 3 i32 expiration_countdown, 4 f32 uptime, 5 Struct external_metadata, 6 str revision, 7 str alias, 8 i32 state, 9 i32 replacement, 10 str machine_type
ListRunnersRequest: 1 bool list_pending, 2 Timestamp start_time
ListAliasRunnersRequest: 1 str alias, 2 bool list_pending, 3 Timestamp start_time, 4 str environment_name
ListRunnersResponse: 1 RunnerInfo* runners
RunnerRequest: 1 str runner_id, 2 bool replace_first
EnvironmentInfo: 1 str name, 2 str description, 3 bool is_default, 4 Timestamp created_at
ListEnvironmentsResponse: 1 EnvironmentInfo* environments
CreateEnvironmentRequest: 1 str name, 2 str description
DeleteEnvironmentRequest: 1 str name
"""
)
