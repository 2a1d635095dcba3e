//! `capsa network`, without guests.
#![cfg(target_os = "linux")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use support::{Capsa, kill};

#[test]
fn network_is_made_listed_inspected_and_removed_without_a_trace() {
    let capsa = Capsa::new();

    let made = capsa.text(&[
        "network",
        "create",
        "lab",
        "--no-outside",
        "--ipv4",
        "10.9.0.0/24",
        "--ipv6",
        "none",
        "--mtu",
        "1400",
    ]);
    let listed = capsa.json(&["network", "ls", "--json"]);
    let table = capsa.text(&["network", "ls"]);
    let inspected = capsa.json(&["network", "inspect", "lab"]);
    capsa.text(&["network", "rm", "lab"]);

    assert_eq!(made, "lab\n");
    assert_eq!(listed[0]["name"], "lab");
    assert_eq!(listed[0]["state"], "running");
    assert_eq!(listed[0]["ipv4"], "10.9.0.0/24");
    assert_eq!(listed[0]["guests"], serde_json::json!([]));
    assert!(
        table.contains("10.9.0.0/24") && table.contains("running"),
        "{table}"
    );
    assert_eq!(inspected["mtu"], 1400);
    assert_eq!(inspected["outside"], false);
    assert_eq!(inspected["peers"], true);
    assert_eq!(inspected["ipv6"], serde_json::Value::Null);
    assert_eq!(
        capsa.json(&["network", "ls", "--json"]),
        serde_json::json!([])
    );
    assert!(capsa.left().is_empty(), "{:?}", capsa.left());
}

#[test]
fn network_whose_name_is_taken_or_none_or_whose_settings_are_wrong_is_refused() {
    let capsa = Capsa::new();
    capsa.text(&["network", "create", "lab"]);

    let taken = capsa.refusal(&["network", "create", "lab"]);
    let reserved = capsa.refusal(&["network", "create", "nat"]);
    let no_name = capsa.refusal(&["network", "create", "a/b"]);
    let range = capsa.refusal(&["network", "create", "small", "--ipv4", "10.0.0.0/30"]);
    let missing = capsa.refusal(&["network", "rm", "other"]);
    let unknown = capsa.refusal(&["run", "--net", "other", "--", "true"]);
    capsa.text(&["network", "rm", "lab"]);

    assert!(taken.contains("runs") && taken.contains("lab"), "{taken}");
    assert!(reserved.contains("choose another"), "{reserved}");
    assert!(no_name.contains("letters, digits"), "{no_name}");
    assert!(range.contains("/8 to /29"), "{range}");
    for error in [missing, unknown] {
        assert!(error.contains("capsa network create other"), "{error}");
    }
    assert!(capsa.left().is_empty(), "{:?}", capsa.left());
}

#[test]
fn network_whose_process_is_killed_is_shown_as_crashed_and_removed() {
    let capsa = Capsa::new();
    capsa.text(&["network", "create", "lab"]);
    let process = capsa.json(&["network", "inspect", "lab"])["process"].clone();

    kill(&process);
    // Its lock is what says that it is gone: taken by nobody once the kernel has closed it.
    wait_for_lock(&capsa, "lab");
    let listed = capsa.json(&["network", "ls", "--json"]);
    let inspected = capsa.json(&["network", "inspect", "lab"]);
    let joined = capsa.refusal(&["run", "--net", "lab", "--", "true"]);
    let again = capsa.refusal(&["network", "create", "lab"]);
    capsa.text(&["network", "rm", "lab"]);

    assert_eq!(listed[0]["state"], "crashed");
    assert_eq!(inspected["state"], "crashed");
    for error in [joined, again] {
        assert!(error.contains("capsa network rm"), "{error}");
    }
    assert!(capsa.left().is_empty(), "{:?}", capsa.left());
}

/// Waits until the process that holds a network's lock is gone.
fn wait_for_lock(capsa: &Capsa, network: &str) {
    let lock = capsa.path().join(".networks").join(network).join("lock");
    let file = std::fs::File::options().write(true).open(lock).unwrap();
    file.lock_shared().unwrap();
}
