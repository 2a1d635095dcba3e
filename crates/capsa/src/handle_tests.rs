use std::sync::Arc;
use std::time::Duration;

use capsa_core::{BackendKind, Error, VmExit, VmStatus, WindowSize};
use futures_core::Stream;

use crate::console::ConsoleConfig;
use crate::fake::{FakeBackend, Launch, OnPowerButton, started};
use crate::{StatusStream, StopReport};

const GRACE: Duration = Duration::from_secs(60);

fn backend() -> FakeBackend {
    FakeBackend::new(BackendKind::Kvm)
}

async fn next(stream: &mut StatusStream) -> Option<VmStatus> {
    std::future::poll_fn(|cx| std::pin::Pin::new(&mut *stream).poll_next(cx)).await
}

#[tokio::test]
async fn a_vm_that_is_built_has_started_nothing() {
    let (vm, mut guest) = backend().vm(|builder| builder.name("n").cpus(2)).await;
    assert_eq!(vm.status(), VmStatus::Created);
    assert_eq!((vm.process_id(), vm.start_duration()), (None, None));
    assert!(guest.try_recv().is_err());
    assert_eq!(vm.spec().cpus, 2);
}

#[tokio::test]
async fn a_start_shows_in_everything_that_asks_for_it() {
    let (vm, _guest) = started().await;
    assert_eq!(vm.status(), VmStatus::Running);
    assert_eq!(vm.process_id(), Some(4242));
    assert_eq!(vm.start_duration(), Some(Duration::from_millis(7)));
    assert_eq!(vm.backend(), BackendKind::Kvm);
    assert_eq!(vm.warnings()[0].0, "a layer is missing");
    let size = WindowSize {
        rows: 2,
        columns: 3,
    };
    assert!(vm.resize_console(size).await.unwrap());
}

#[tokio::test]
async fn a_second_start_is_refused() {
    let (vm, _guest) = started().await;
    let error = vm.start().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot start it: the virtual machine runs"
    );
}

#[tokio::test]
async fn a_failed_start_ends_the_vm_with_its_reason() {
    let (vm, _guest) = backend()
        .launching(Launch::Fails)
        .vm(|builder| builder)
        .await;
    let mut console = vm.console().unwrap();
    assert!(matches!(vm.start().await, Err(Error::Start { .. })));
    assert!(vm.wait().await.to_string().contains("no memory is left"));
    let error = console.wait_for("x", GRACE).await.unwrap_err();
    assert!(matches!(error, Error::EndedEarly { .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_start_that_takes_too_long_is_ended() {
    let (vm, _guest) = backend()
        .launching(Launch::Hangs)
        .vm(|builder| builder.start_timeout(Duration::from_secs(3)))
        .await;
    let error = vm.start().await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
    assert!(vm.status().exit().is_some());
}

#[tokio::test]
async fn a_start_that_is_dropped_ends_the_vm() {
    let (vm, _guest) = backend()
        .launching(Launch::Hangs)
        .vm(|builder| builder)
        .await;
    {
        let start = vm.start();
        tokio::pin!(start);
        let pending = std::future::poll_fn(|cx| {
            std::task::Poll::Ready(std::future::Future::poll(start.as_mut(), cx).is_pending())
        });
        assert!(pending.await);
        assert_eq!(vm.status(), VmStatus::Starting);
    }
    assert_eq!(vm.wait().await, VmExit::Killed);
}

#[tokio::test]
async fn a_kill_breaks_off_a_start() {
    let (vm, _guest) = backend()
        .launching(Launch::Hangs)
        .vm(|builder| builder)
        .await;
    let vm = Arc::new(vm);
    let starting = tokio::spawn({
        let vm = vm.clone();
        async move { vm.start().await }
    });
    while vm.status() != VmStatus::Starting {
        tokio::task::yield_now().await;
    }
    vm.kill().await.unwrap();
    assert!(matches!(
        starting.await.unwrap(),
        Err(Error::Ended(VmExit::Killed))
    ));
}

#[tokio::test]
async fn a_vm_killed_before_its_start_cannot_be_started() {
    let (vm, _guest) = backend().vm(|builder| builder).await;
    vm.kill().await.unwrap();
    assert_eq!(vm.wait().await, VmExit::Killed);
    let error = vm.start().await.unwrap_err();
    assert!(error.to_string().ends_with("has ended"), "{error}");
}

#[tokio::test]
async fn a_guest_that_heeds_the_power_button_is_stopped_in_order() {
    let (vm, _guest) = started().await;
    let expected = StopReport {
        exit: VmExit::PoweredOff,
        killed: false,
    };
    assert_eq!(vm.stop(GRACE).await.unwrap(), expected);
    assert_eq!(vm.stop(GRACE).await.unwrap(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_ignores_the_power_button_is_killed_after_the_grace_period() {
    let (vm, guest) = started().await;
    guest.on_power_button(OnPowerButton::Nothing);
    let begun = tokio::time::Instant::now();
    let report = vm.stop(GRACE).await.unwrap();
    assert_eq!(report.exit, VmExit::Killed);
    assert!(report.killed);
    assert_eq!(begun.elapsed().as_secs(), GRACE.as_secs());
}

#[tokio::test]
async fn a_vm_that_is_not_started_cannot_be_stopped_or_paused() {
    let (vm, _guest) = backend().vm(|builder| builder).await;
    for error in [
        vm.stop(GRACE).await.unwrap_err(),
        vm.pause().await.unwrap_err(),
    ] {
        assert!(error.to_string().ends_with("is not started"), "{error}");
    }
}

#[tokio::test]
async fn what_the_backend_lacks_is_unsupported() {
    let (vm, _guest) = backend()
        .with(|capabilities| {
            capabilities.pause = false;
            capabilities.power_button = false;
        })
        .vm(|builder| builder)
        .await;
    vm.start().await.unwrap();
    assert!(matches!(vm.pause().await, Err(Error::Unsupported { .. })));
    assert!(matches!(
        vm.stop(GRACE).await,
        Err(Error::Unsupported { .. })
    ));
}

#[tokio::test]
async fn the_status_stream_follows_pause_and_ends_after_the_end() {
    let (vm, guest) = started().await;
    let mut stream = vm.status_stream();
    assert_eq!(next(&mut stream).await, Some(VmStatus::Running));
    vm.pause().await.unwrap();
    assert_eq!(next(&mut stream).await, Some(VmStatus::Paused));
    vm.resume().await.unwrap();
    assert_eq!(next(&mut stream).await, Some(VmStatus::Running));
    guest.exit(VmExit::TripleFault);
    assert_eq!(
        next(&mut stream).await,
        Some(VmStatus::Exited(VmExit::TripleFault))
    );
    assert_eq!(next(&mut stream).await, None);
}

#[tokio::test]
async fn every_waiter_hears_of_the_end() {
    let (vm, guest) = started().await;
    let vm = Arc::new(vm);
    let waiters: Vec<_> = (0..10)
        .map(|_| {
            let vm = vm.clone();
            tokio::spawn(async move { vm.wait().await })
        })
        .collect();
    guest.exit(VmExit::Reset);
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap(), VmExit::Reset);
    }
}

#[tokio::test]
async fn a_dropped_handle_ends_the_vm_and_whoever_follows_it() {
    let (vm, guest) = started().await;
    let mut stream = vm.status_stream();
    drop(vm);
    assert!(guest.ended());
    while let Some(status) = next(&mut stream).await {
        assert!(matches!(
            status,
            VmStatus::Running | VmStatus::Exited(VmExit::Killed)
        ));
    }
}

#[tokio::test]
async fn a_vm_without_a_console_says_so() {
    let (vm, _guest) = backend()
        .vm(|builder| builder.console(ConsoleConfig::disabled()))
        .await;
    assert!(matches!(vm.console().err(), Some(Error::Console { .. })));
}

#[test]
fn handles_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<crate::VmHandle>();
    shared::<crate::VmConsole>();
}
