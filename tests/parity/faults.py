"""What was wrong with the system this one descends from, and the tests that show the opposite here.

The numbers are those of the table that was made by probing it. A row without tests belongs to a part that is
not built yet, and says which.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """One of its faults. ``shown_by``: tests as ``folder/file.py::name``; ``missing``: what is to come."""

    number: int
    there: str
    here: str
    shown_by: tuple[str, ...]
    missing: str = ""


FAULTS = (
    Fault(
        1,
        "a handler that raises is dead-lettered at once, without its payload",
        "tried again with growing delays; a dead letter is whole and can be redriven",
        (
            "contract/test_delivery.py::test_a_failed_handler_is_tried_again_later",
            "contract/test_delivery.py::test_an_exhausted_message_is_dead_with_its_last_error_and_body",
            "integration/test_dead_letters.py::test_dead_letters_from_the_command_line",
        ),
    ),
    Fault(
        2,
        "after a broker restart agents never reconnect",
        "back by themselves, nothing lost",
        (
            "contract/test_lifecycle.py::test_a_killed_server_is_survived",
            "integration/test_recovery.py::test_nothing_accepted_is_lost_when_the_server_is_killed_under_load",
        ),
    ),
    Fault(
        3,
        "a role grants what a block list forbids, and targets that do not exist",
        "a block beats everything; an unknown target is refused",
        (
            "unit/test_policy_table.py::test_block_beats_allow_beats_nothing",
            "integration/test_bad_input.py::test_block_beats_allow_and_nothing_is_allowed_by_default",
            "contract/test_messaging.py::test_an_allowed_target_that_does_not_exist",
        ),
    ),
    Fault(
        4,
        "DLP misses a number after a newline, and a card on its own line",
        "decoded strings are what is judged",
        (
            "unit/test_dlp.py::test_decoded_text_is_judged",
            "unit/test_dlp.py::test_no_form_hides_a_secret",
        ),
    ),
    Fault(
        5,
        "its e-mail pattern is quadratic: 80 KB stall the whole broker",
        "linear time",
        ("unit/test_dlp.py::test_time_is_linear",),
    ),
    Fault(
        6,
        "editing or deleting an entry and one field of the next verifies as intact",
        "every such edit is found",
        (
            "integration/test_audit_verify.py::test_an_edit_is_found_without_any_checkpoint",
            "integration/test_audit_verify.py::test_a_rewritten_chain_is_found_by_its_checkpoint",
            "integration/test_audit_verify.py::test_a_cut_of_chain_head_and_all_traces_is_found_by_its_checkpoint",
        ),
    ),
    Fault(
        7,
        "it routes first and audits after",
        "the decision is durable before the message or with it; a refused send delivered nothing",
        (
            "integration/test_durability_path.py::test_what_was_accepted_was_on_disk_before",
            "integration/test_bad_input.py::test_a_full_log_refuses_and_recovers",
        ),
    ),
    Fault(
        8,
        "a second broker cuts off everyone on the first",
        "any number of workers",
        (
            "integration/test_crash.py::test_workers_killed",
            "integration/test_fairness.py::test_full_batches_in_one_worker_starve_nobody",
        ),
    ),
    Fault(
        9,
        "bad payloads of one sender open the target's circuit for all",
        "only the target's own failures count",
        (
            "integration/test_circuit_breaker.py::test_bad_payloads_never_open_it",
            "integration/test_circuit_breaker.py::test_one_message_that_nobody_can_handle_does_not_open_it",
        ),
    ),
    Fault(
        10,
        "two instances overwrite each other's state; 1 MB states pass, unaudited",
        "compare-and-set, own key only, a limit of size, every change audited",
        (
            "contract/test_state.py::test_a_lost_race_raises",
            "contract/test_state.py::test_each_agent_has_its_own",
            "contract/test_state.py::test_what_does_not_fit_is_refused",
            "integration/test_direct_state.py::test_each_change_is_audited_once",
        ),
    ),
    Fault(
        11,
        "a reply that DLP blocks cannot be corrected",
        "the replier may correct it",
        (
            "unit/test_dlp_calls.py::test_a_reply_that_is_blocked_may_be_corrected",
            "integration/test_dlp_agents.py::test_a_requester_learns_at_once_that_there_will_be_no_reply",
        ),
    ),
    Fault(
        12,
        "delivered messages and index copies grow for ever",
        "what was handled and projected leaves the log; what stays is bounded",
        (
            "integration/test_audit_projector.py::test_projected_records_leave_the_log_and_messages_stay",
            "integration/test_audit_projector.py::test_probes_stay_as_long_as_their_dedup_ids_and_no_longer",
            "unit/test_rates.py::test_every_key_ends_and_traffic_makes_no_more_of_them",
            "unit/test_circuit.py::test_keys_end_and_closed_circuits_have_none",
        ),
    ),
    Fault(
        13,
        "about a hundred sessions, then deliveries end silently",
        "agents have connections of their own and share no pool; a failure is loud",
        (
            "integration/test_recovery.py::test_a_namespace_that_cannot_be_served_holds_up_no_other",
            "contract/test_messaging.py::test_work_is_shared_by_instances",
        ),
        missing="a run with thousands of agents comes with the benchmarks",
    ),
    Fault(
        14,
        "600 handlers that each wait for a nested request: 418 fail",
        "all finish",
        ("integration/test_head_of_line.py::test_handlers_that_all_wait_for_answers_all_get_them",),
    ),
    Fault(
        15,
        "one Redis error ends a session's deliveries silently and for ever",
        "traffic goes on without Redis, and the audit catches up",
        (
            "integration/test_bad_input.py::test_redis_away_does_not_matter_to_traffic",
            "integration/test_crash.py::test_redis_killed_and_back",
            "integration/test_rate_limits.py::test_while_redis_is_away_the_workers_share_the_limit",
            "integration/test_circuit_breaker.py::test_without_redis_every_worker_has_its_own",
        ),
    ),
    Fault(
        16,
        "a handler slower than 30 s is started again while it runs",
        "kept alive while it runs, started again only after it died",
        (
            "contract/test_delivery.py::test_a_handler_that_blocks_the_loop_is_not_started_twice",
            "contract/test_delivery.py::test_a_long_handler_is_not_given_to_another_instance",
        ),
    ),
    Fault(
        17,
        "each audit entry retries an optimistic lock; more writers are slower",
        "one log, batches, one projector",
        (
            "integration/test_fairness.py::test_full_batches_in_one_worker_starve_nobody",
            "integration/test_audit_projector.py::test_racing_projectors_cancelled_at_random_points",
        ),
    ),
    Fault(
        18,
        "what a dead receiver held comes back 50 at a time",
        "all of it, as soon as the ack wait says",
        (
            "contract/test_delivery.py::test_what_a_dead_process_held_comes_back_to_another",
            "integration/test_instances.py::test_instances_come_and_go_under_load",
        ),
    ),
    Fault(
        19,
        "sends to a receiver that is down are refused as permission denied",
        "accepted and kept",
        ("contract/test_messaging.py::test_send_to_an_agent_that_is_not_running_waits_for_it",),
    ),
    Fault(
        20,
        "DLP misses secrets by field name and flags order numbers",
        "context and validators",
        (
            "unit/test_dlp.py::test_names_keys_and_numbers_are_judged",
            "unit/test_dlp.py::test_what_only_looks_like_it_is_left_alone",
            "unit/test_dlp_corpus.py::test_every_class_is_found_and_little_else",
        ),
    ),
    Fault(
        21,
        "verification reads everything at once and blocks Redis",
        "in pages",
        ("integration/test_audit_verify.py::test_a_hundred_thousand_entries",),
    ),
)
