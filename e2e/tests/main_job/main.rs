//! The main job on a real cluster: training pods on two nodes read cloud buckets through PVCs. One cluster serves all scenarios, in order.

mod bad_input;
mod deletion;
mod memory;
mod node_faults;
mod pool;
mod reading;
mod survival;
mod tenant;
mod upgrade;
mod volumes;

use std::process::ExitCode;

use forebay_e2e::scenarios::{self, Scenario};
use forebay_e2e::{Options, debian, forebay};

fn main() -> ExitCode {
    scenarios::main(
        || {
            let images = vec![forebay::image()?, debian::training_image()?];
            Ok(Options { name: "main-job".into(), images, ..Options::default() })
        },
        &[
            Scenario { name: "the_chart_passes_lint_and_renders", run: deletion::the_chart_passes_lint_and_renders },
            Scenario { name: "the_chart_installs_and_a_runtime_becomes_ready", run: reading::a_runtime_becomes_ready },
            Scenario {
                name: "two_pods_read_every_file_right_and_each_byte_leaves_the_source_once",
                run: reading::two_pods_read_every_file_right,
            },
            Scenario { name: "kubectl_shows_what_is_loaded", run: reading::kubectl_shows_what_is_loaded },
            Scenario { name: "a_file_source_shows_a_folder_that_all_nodes_share", run: reading::a_file_source_is_read },
            Scenario {
                name: "no_read_fails_while_operator_cache_node_daemon_and_plugin_are_killed",
                run: survival::no_read_fails_while_parts_are_killed,
            },
            Scenario {
                name: "no_read_fails_while_an_upgrade_replaces_plugins_and_daemons",
                run: upgrade::no_read_fails_while_daemon_sets_are_replaced,
            },
            Scenario {
                name: "a_pod_has_datasets_inline_by_claim_and_by_sub_path_at_once",
                run: volumes::a_pod_has_a_dataset_in_every_way_at_once,
            },
            Scenario {
                name: "a_pod_of_another_namespace_waits_until_a_dataset_is_shared",
                run: volumes::another_namespace_waits_until_a_dataset_is_shared,
            },
            Scenario {
                name: "what_is_to_be_everywhere_crosses_the_line_once",
                run: pool::what_is_to_be_everywhere_crosses_the_line_once,
            },
            Scenario {
                name: "a_node_that_is_not_wanted_hands_over_and_goes_while_pods_read",
                run: pool::a_node_that_is_not_wanted_hands_over_and_goes,
            },
            Scenario { name: "a_damaged_file_is_told_and_healed", run: pool::a_damaged_file_is_told_and_healed },
            Scenario {
                name: "memory_before_a_disk_serves_right_bytes_and_is_left_empty",
                run: memory::memory_before_disk_serves_right_bytes,
            },
            Scenario {
                name: "bad_input_gives_a_reason_within_30_s_and_heals_without_a_restart",
                run: bad_input::bad_input_is_explained_and_heals,
            },
            Scenario {
                name: "what_is_not_supported_yet_is_refused_by_name",
                run: bad_input::unsupported_fields_are_refused,
            },
            Scenario {
                name: "a_pod_deleted_by_force_leaves_no_mount_and_the_next_one_reads_at_once",
                run: node_faults::a_pod_is_deleted_by_force,
            },
            Scenario {
                name: "a_daemon_that_hangs_is_replaced_and_its_metrics_are_scraped",
                run: node_faults::a_worker_that_hangs_is_replaced,
            },
            Scenario {
                name: "a_kubelet_that_dies_while_pods_mount_goes_on_with_them",
                run: node_faults::the_kubelet_dies_while_pods_mount,
            },
            Scenario {
                name: "pods_come_back_after_their_node_was_killed_or_rebooted_and_nothing_is_fetched_again",
                run: node_faults::pods_come_back_with_their_node,
            },
            Scenario {
                name: "deleting_pods_datasets_and_runtime_leaves_nothing_behind",
                run: deletion::deleting_everything_leaves_nothing,
            },
        ],
    )
}
