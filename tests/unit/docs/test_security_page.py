"""The threat model: each threat names a test that is there, and each sentence has tests that would
fail if it were not true."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")
SENTENCE = re.compile(r"(?<=\.)\s+(?=[A-Z`*])")

CALL = "unit/child/test_call.py"
CONFINED = "unit/child/test_confined.py"
RECIPE_STORE = "integration/recipes/test_recipe_store.py"
PORTS = "integration/store/test_inner_ports.py"
POLICIES = "integration/store/test_s3_policies.py"
STORE = "integration/store/test_store.py"
TRUST = "integration/store/test_trust.py"
GC_TELLS = (
    "integration/release/test_gc.py::"
    "test_a_blob_that_an_engine_uses_in_the_moment_of_its_deletion_is_told_and_built_again"
)
CACHE = "unit/store/test_cache.py"
PLANTED = "unit/store/test_untrusted_files.py"
MEANWHILE = "integration/store/test_meanwhile.py"
ISOLATE = "unit/building/test_isolate.py"
AUDIT = "unit/infra/test_audit.py"
COMPOSE = "unit/infra/test_compose.py"
COMPOSE_RUN = "farm/test_compose_commands.py"
KUBERNETES = "unit/infra/test_kubernetes.py"
SERVER = "farm/test_server_password.py"
ENVIRONMENT = "unit/farm/test_environment.py"
SECRETS = "farm/test_secrets.py"
HERE = "unit/docs/test_security_page.py"

PROOFS: dict[str, tuple[str, ...]] = {
    # sentence, by its beginning: tests, as FILE::FUNCTION below tests/
    "**Anyone who can put a file": (f"{CONFINED}::test_code_beside_the_recipe_runs",),
    "If `ENGINEFARM_RECIPE_ROOTS` includes": (
        f"{RECIPE_STORE}::test_no_worker_takes_them_unless_its_roots_name_the_store",
    ),
    "Recipes come only from": ("farm/test_farm.py::test_a_recipe_outside_the_roots_is_refused",),
    "Recipes in the store run only": (
        f"{RECIPE_STORE}::test_no_worker_takes_them_unless_its_roots_name_the_store",
    ),
    "Workers' keys cannot write `recipes/`": (
        f"{POLICIES}::test_who_pushes_recipes_brings_code_and_no_engine",
    ),
    "With a trust key, a recipe": (
        f"{RECIPE_STORE}::test_a_worker_with_a_trust_key_takes_only_what_it_signed",
    ),
    "Every file is hashed": (
        f"{RECIPE_STORE}::test_damaged_files_and_documents_are_never_unpacked",
    ),
    "`file.py` is loaded only": (
        f"{CONFINED}::test_code_from_elsewhere_is_neither_run_nor_read",
        f"{CONFINED}::test_a_recipe_root_may_hold_shared_code",
    ),
    "Checkpoints are read": (
        "unit/graph/sources/test_checkpoints.py::test_a_malicious_pickle_is_refused_and_runs_nothing",
        "unit/graph/sources/test_exported_program.py::test_only_members_that_torch_writes_pass",
    ),
    "The builder is a child process": (
        f"{ISOLATE}::test_every_way_to_fail_is_one_error_and_leaves_no_plan",
        f"{CALL}::test_a_loop_without_end_ends_at_its_limit",
        f"{CALL}::test_memory_has_a_limit_also_for_what_it_starts",
        f"{CALL}::test_what_it_started_ends_with_it",
    ),
    "Its environment is a short list": (f"{ISOLATE}::test_the_childs_environment_is_a_short_list",),
    "It dies with its parent": (f"{CALL}::test_it_dies_with_its_parent",),
    "Calls of functions are counted": (
        "unit/graph/model/test_functions.py::"
        "test_functions_that_stand_for_too_many_nodes_are_counted_and_refused",
        "unit/graph/model/test_functions.py::test_constants_that_calls_repeat_are_counted_in_bytes",
    ),
    "Every child has a time and a memory limit": (
        f"{CALL}::test_every_child_has_the_limits_of_a_build",
        f"{CALL}::test_on_a_machine_without_memory_the_largest_child_is_ended",
        "unit/graph/test_work.py::test_a_graph_that_asks_for_more_than_the_limits_is_ended",
    ),
    "Every text is escaped": (
        "unit/report/test_hostile_text.py::test_text_adds_no_element_no_attribute_and_no_link",
        "browser/test_report_page.py::test_no_text_of_any_field_is_run",
    ),
    "Reasons and notes in the artifacts": (
        "unit/planning/test_outcome.py::test_the_text_of_a_reason_is_shown_as_it_is",
        "unit/farm/test_promote_page.py::test_what_a_gate_found_is_shown_as_it_is",
    ),
    "The page's policy runs no script": (
        "browser/test_report_page.py::test_the_policy_stops_what_would_slip_through",
        "unit/report/test_report.py::test_the_page_refers_to_nothing_outside_itself",
    ),
    "The file is refused when it is read": (
        "unit/graph/model/test_onnx_files.py::test_external_data_outside_the_folder_is_refused",
        "unit/graph/model/test_onnx_files.py::test_external_data_through_a_link_is_refused",
        "unit/graph/model/test_onnx_files.py::test_external_data_in_a_pipe_is_not_waited_for",
    ),
    "A `Name` is one path segment": (
        "unit/fuzz/test_properties.py::test_a_name_is_one_segment_of_a_path_and_of_a_key",
    ),
    "The name must be one safe segment": (
        f"{CONFINED}::test_a_url_cannot_name_a_path",
        f"{CONFINED}::test_a_plain_name_is_kept",
    ),
    "Every byte is hashed before use": (
        f"{STORE}::test_an_overwritten_blob_is_refused_and_healed_by_the_next_upload",
        f"{STORE}::test_small_bytes_are_checked_too",
        f"{STORE}::test_a_manifest_of_another_spec_or_of_nonsense_is_refused",
    ),
    "Hosts with `ENGINEFARM_TRUST` refuse": (
        "integration/pulling/test_inference_host.py::"
        "test_an_unsigned_engine_is_refused_before_its_bytes_are_touched",
    ),
    "A signer accepts only records": (
        f"{TRUST}::test_a_forged_record_of_a_plan_is_built_again_and_never_signed",
        f"{TRUST}::test_what_this_process_did_not_build_it_does_not_sign",
        f"{TRUST}::test_the_header_of_a_portable_plan_is_compared_with_the_spec",
    ),
    "Revisions and shared names are signed": (
        f"{TRUST}::test_a_forged_revision_is_refused_and_the_next_signed_one_is_taken",
        f"{TRUST}::test_a_signed_revision_is_of_one_channel_number_and_set_of_engines",
        f"{TRUST}::"
        "test_an_engine_under_another_recipes_name_is_refused_until_a_builder_signs_the_name",
    ),
    "A host refuses a revision older": (
        f"{TRUST}::test_a_host_notices_that_newer_revisions_were_deleted",
    ),
    "A file is hashed before use unless": (
        f"{CACHE}::test_a_file_of_the_right_size_and_other_bytes_is_not_handed_out",
        f"{CACHE}::test_bytes_that_were_changed_in_place_under_their_old_date_are_seen",
        f"{CACHE}::test_bytes_that_were_changed_behind_a_memo_of_another_inode_are_seen",
        f"{CACHE}::test_a_file_is_hashed_once_while_it_stays_the_same",
    ),
    "Files are read-only and": (
        f"{CACHE}::test_blobs_are_read_only",
        f"{CACHE}::test_a_clone_shares_no_inode",
    ),
    "HTTP needs a token or is off": (
        f"{PORTS}::test_an_inner_port_reads_and_writes_nothing_without_a_token",
        f"{PORTS}::test_a_grpc_port_serves_the_stores_own_certificate_alone",
        f"{PORTS}::test_no_other_user_reads_the_folder_or_its_sockets",
    ),
    "Its key does not allow that": (
        f"{POLICIES}::test_a_worker_promotes_nothing",
        f"{POLICIES}::test_who_pushes_recipes_brings_code_and_no_engine",
    ),
    "The keys of Compose have the same policies": (
        f"{COMPOSE}::test_each_key_may_do_what_its_policy_file_says_and_no_more",
        f"{COMPOSE_RUN}::test_a_key_does_its_own_work_and_no_other",
    ),
    "The server's gRPC port needs": (
        f"{COMPOSE_RUN}::test_no_other_container_makes_keys_by_the_s3_servers_grpc_port",
    ),
    "The API needs a password, which": (
        f"{SERVER}::test_a_request_without_the_password_is_refused",
        f"{SERVER}::test_a_page_of_another_site_may_not_ask",
        f"{ENVIRONMENT}::test_the_server_makes_a_password_that_only_its_user_reads_and_keeps_it",
    ),
    "A server that other machines reach": (
        f"{ENVIRONMENT}::test_a_server_without_a_password_does_not_start",
    ),
    "Workers start nothing but": (
        f"{SERVER}::test_a_run_cannot_choose_command_environment_or_folder",
    ),
    "The code runs in a child process": (
        f"{CALL}::test_a_loop_without_end_ends_at_its_limit",
        f"{CALL}::test_memory_has_a_limit_also_for_what_it_starts",
        f"{CALL}::test_every_end_is_one_error",
    ),
    "The child does not inherit credentials": (
        f"{CALL}::test_the_child_has_no_credentials_and_reads_none",
    ),
    "Secrets are never parameters": (
        f"{SECRETS}::test_the_run_left_what_is_searched",
        f"{SECRETS}::test_a_planted_secret_is_nowhere",
        f"{SECRETS}::test_the_builder_sees_none_of_it",
    ),
    "`enginefarm/`, `flows/` and `tasks/` never": (f"{HERE}::test_the_rules_about_shells_are_on",),
    "In Compose it listens on loopback": (f"{COMPOSE}::test_ports_are_on_loopback_alone",),
    "It needs a password, and Kubernetes": (
        f"{COMPOSE_RUN}::test_the_server_asks_for_its_password",
        f"{KUBERNETES}::test_only_the_server_reaches_the_database",
    ),
    "No token is mounted": (
        f"{KUBERNETES}::test_every_pod_is_confined",
        f"{KUBERNETES}::test_only_the_server_reaches_the_database",
    ),
    "`constraints.txt` has exact versions": (
        f"{HERE}::test_the_lock_has_versions_and_no_hashes_as_the_page_says",
    ),
    "`make audit` in CI runs pip-audit": (
        f"{HERE}::test_ci_audits",
        f"{AUDIT}::test_a_vulnerability_is_named_with_its_fix",
    ),
    "The embedded store listens only": (f"{STORE}::test_the_embedded_server_is_the_users_alone",),
    "Another user of the machine can see": (
        f"{PORTS}::test_an_inner_port_reads_and_writes_nothing_without_a_token",
        f"{PORTS}::test_a_grpc_port_serves_the_stores_own_certificate_alone",
        f"{STORE}::test_a_wrong_key_is_denied_and_not_repeated",
    ),
    "If that user has one of its ports": (
        "unit/store/test_ports.py::test_a_port_that_somebody_took_is_replaced",
        "unit/store/test_ports.py::test_a_name_in_tmp_that_somebody_took_is_replaced",
    ),
    "A host that checks signatures notices": (
        f"{TRUST}::test_a_host_notices_that_newer_revisions_were_deleted",
    ),
    "A recipe's accuracy budgets in the store": (
        f"{TRUST}::test_what_somebody_who_writes_the_store_can_still_do",
    ),
    "Somebody who can write to the store can loosen": (
        f"{TRUST}::test_what_somebody_who_writes_the_store_can_still_do",
    ),
    "The budget by which an engine is judged on its GPU": (
        "farm/test_run_form.py::test_whoever_starts_a_benchmark_chooses_its_budget",
    ),
    "Somebody who can write to the store can still": (
        f"{TRUST}::test_what_somebody_who_writes_the_store_can_still_do",
    ),
    "Recipe code runs as the user": (f"{CALL}::test_files_of_the_user_are_open_to_it",),
    "With a store key it could publish": (f"{POLICIES}::test_a_worker_publishes",),
    "It could not move `production`": (
        f"{POLICIES}::test_a_worker_promotes_nothing",
        f"{TRUST}::"
        "test_a_published_manifest_that_nobody_signed_does_not_keep_the_engine_from_being_built",
    ),
    "`enginefarm build` on a developer's machine": (
        f"{CALL}::test_files_of_the_user_are_open_to_it",
    ),
    "`make audit`, in CI, asks PyPI": (
        f"{HERE}::test_ci_audits",
        f"{AUDIT}::test_a_vulnerability_is_named_with_its_fix",
    ),
    "Where this was written the service": (
        f"{AUDIT}::test_a_service_out_of_reach_is_no_pass",
        f"{AUDIT}::test_a_service_that_knows_nothing_is_no_pass",
    ),
    "The GPU worker signs its result": (
        f"{TRUST}::test_what_a_gpu_says_counts_if_a_trusted_key_signed_it",
    ),
    "Hosts and gates with trust keys treat": (
        f"{TRUST}::test_a_forged_result_of_a_gpu_is_neither_believed_nor_promoted",
    ),
    "`constraints.txt` pins versions": (
        f"{HERE}::test_the_lock_has_versions_and_no_hashes_as_the_page_says",
    ),
    "Docker's default seccomp profile": (
        f"{ISOLATE}::test_a_build_notes_whether_its_addresses_were_random",
    ),
    "Each manifest notes that": (
        f"{ISOLATE}::test_a_build_notes_whether_its_addresses_were_random",
    ),
    "Every copy that leaves the cache": (
        f"{PLANTED}::test_a_blob_that_is_replaced_after_it_was_checked_is_not_copied_out",
        "integration/release/test_rollout.py::test_a_repository_in_a_bucket",
    ),
    "What that user could have written": (
        f"{PLANTED}::test_a_memo_counts_only_where_nobody_else_could_write_it_and_the_bytes",
        f"{PLANTED}::test_whose_files_are_believed",
    ),
    "A planted link is not followed": (
        f"{PLANTED}::test_a_link_in_place_of_a_blob_is_replaced_by_the_blob",
        f"{PLANTED}::test_a_download_writes_through_no_link",
        f"{PLANTED}::test_a_pipe_beside_a_blob_is_not_waited_for",
        f"{PLANTED}::test_a_pipe_among_the_records_is_not_waited_for",
    ),
    "Whoever moves the channel or publishes": (
        f"{MEANWHILE}::test_a_channel_never_moves_in_silence_to_an_engine_that_gc_deleted_meanwhile",
        f"{MEANWHILE}::test_an_engine_that_gc_deletes_while_it_is_found_does_not_count_as_built",
    ),
    "A build publishes it again": (
        f"{MEANWHILE}::test_a_build_that_gc_overtakes_publishes_its_engine_again",
    ),
    "gc checks a blob once more": (
        "integration/release/test_gc.py::test_an_engine_that_is_used_again_after_the_first_look_stays",
    ),
    "A build that publishes an engine with this old blob": (GC_TELLS,),
    "Then gc ends with an error that names the blob": (GC_TELLS,),
    "A worker with a signing key or trust keys runs only": (
        "farm/test_gpu_trust.py::test_a_worker_with_keys_runs_no_plan_that_none_of_them_signed",
    ),
    "What it leaves is read up to a limit": (
        f"{CALL}::test_a_file_of_any_size_is_not_read_into_memory",
        f"{CALL}::test_a_line_of_progress_without_end_takes_no_memory",
        "unit/child/test_output_files.py::test_what_is_no_file_of_its_own_is_not_taken",
    ),
    "A `*` in an S3 policy": (
        f"{POLICIES}::test_what_the_star_of_a_policy_also_matches_is_no_revision",
    ),
    "The FP32 reference is in the store": (
        "unit/graph/verification/test_reference.py::test_batches_outputs_and_labels_come_back",
    ),
    "So is every file of a recipe": (
        f"{RECIPE_STORE}::test_a_pushed_recipe_is_the_same_recipe_on_another_machine",
    ),
    "Workers can read them": (
        f"{POLICIES}::test_a_worker_publishes",
        f"{POLICIES}::test_a_host_that_knows_its_digest_reads_any_blob_and_none_can_be_listed",
    ),
}
ADVICE = ("Do not use personal data", "Report it privately")
"""Sentences that ask for something, and say nothing of the farm."""


def threats() -> list[list[str]]:
    section = PAGE.partition("## Threats and countermeasures")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def sentences() -> list[str]:
    """Those of the paragraphs and lists, and of the countermeasures."""
    blocks = [block for block in re.split(r"\n\s*\n", PAGE) if not block.startswith(("#", "|"))]
    items = [item for block in blocks for item in re.split(r"^- ", block, flags=re.MULTILINE)]
    texts = [" ".join(item.split()) for item in items] + [row[1] for row in threats()]
    return [sentence for text in texts for sentence in SENTENCE.split(text) if sentence]


def test_each_sentence_has_a_proof_and_each_proof_a_sentence() -> None:
    found = sentences()
    assert len(found) > 50
    for sentence in found:
        fits = [key for key in (*PROOFS, *ADVICE) if sentence.startswith(key)]
        assert len(fits) == 1, f"add a proof, or change the sentence: {sentence}"
    for key in (*PROOFS, *ADVICE):
        assert any(sentence.startswith(key) for sentence in found), f"no such sentence: {key}"


def test_each_proof_is_a_test_that_is_there() -> None:
    for key, tests in PROOFS.items():
        assert tests, key
        for test in tests:
            file, _, name = test.partition("::")
            text = (ROOT / "tests" / file).read_text("utf-8")
            assert re.search(rf"^def {name}\(", text, re.MULTILINE), f"{key}: {test}"


def test_each_threat_has_a_test_or_says_below_that_it_has_none() -> None:
    assert len(threats()) > 20
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for threat, _, tested in threats():
        if tested == "see below":
            continue
        named = re.findall(r"`([^`]+)`", tested)
        assert named, threat
        for name in named:
            if name.startswith("make "):
                assert f"\n{name.removeprefix('make ')}:" in makefile, threat
            else:
                assert (ROOT / name).exists(), f"{threat}: {name}"


def test_the_lock_has_versions_and_no_hashes_as_the_page_says() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all("==" in line for line in pins)
    assert not any("--hash" in line for line in pins)
    assert "`constraints.txt` pins versions, not hashes." in PAGE


def test_the_rules_about_shells_are_on() -> None:
    """ruff's S: the whole group is selected, and ignored for tests, benchmarks and examples alone.
    S603 is about subprocesses without a shell, which is what the code uses."""
    settings = (ROOT / "pyproject.toml").read_text("utf-8")
    rules = settings.partition("[tool.ruff.lint]")[2].partition("\n[")[0]
    assert '"S"' in rules.partition("select")[2].partition("]")[0]
    assert not re.search(r"S60[245]|S60?\b", rules.partition("ignore")[2])
    for folder in ("enginefarm", "flows", "tasks"):
        assert f'"{folder}' not in settings.partition("per-file-ignores]")[2].partition("\n[")[0]
        for file in (ROOT / folder).rglob("*.py"):
            assert not re.search(r"noqa:.*S60[245]", file.read_text("utf-8")), file


def test_ci_audits() -> None:
    assert "make audit" in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
