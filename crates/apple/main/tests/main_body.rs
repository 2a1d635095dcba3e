//! The body's value comes back, with timers and tasks of a runtime.
#![allow(missing_docs)]

#[test]
fn body_runs_in_a_runtime_and_its_value_comes_back() {
    let value = apple_main::run(|| async {
        let task = tokio::spawn(async {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            41
        });
        task.await.map(|value| value + 1)
    });
    assert_eq!(value.ok(), Some(42));
}
