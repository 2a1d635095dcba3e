//! How a VM ends is told apart, and pausing.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::time::Duration;

use capsa::test_utils::{self, LIMIT, Shell};
use capsa::{Error, StopReport, VmExit, VmStatus};
use rustix::process::{Pid, Signal, kill_process};

async fn shell() -> Shell {
    Shell::start(test_utils::vm().await).await
}

/// Types a command that ends the guest; how it did.
async fn end_by(shell: &mut Shell, command: &str) -> VmExit {
    shell.send(command).await;
    tokio::time::timeout(LIMIT, shell.vm.wait()).await.unwrap()
}

#[tokio::test]
async fn a_power_off_is_a_power_off() {
    assert_eq!(
        end_by(&mut shell().await, "poweroff -f").await,
        VmExit::PoweredOff
    );
}

#[tokio::test]
async fn a_reboot_is_a_reset() {
    assert_eq!(end_by(&mut shell().await, "reboot -f").await, VmExit::Reset);
}

#[tokio::test]
async fn a_panic_is_a_panic_with_its_message() {
    let exit = end_by(&mut shell().await, "echo c > /proc/sysrq-trigger").await;
    let VmExit::GuestPanic(panic) = &exit else {
        panic!("{exit:?}");
    };
    let message = panic.message.as_deref().unwrap_or_default();
    assert!(message.contains("sysrq triggered crash"), "{panic:?}");
}

#[tokio::test]
async fn a_triple_fault_is_told_from_a_reset_where_the_backend_can() {
    let builder = test_utils::vm().await.cmdline("reboot=t");
    let mut shell = Shell::start(builder).await;
    let expected = if shell.vm.capabilities().triple_fault {
        VmExit::TripleFault
    } else {
        VmExit::Reset
    };
    assert_eq!(end_by(&mut shell, "reboot -f").await, expected);
}

#[tokio::test]
async fn a_kill_is_a_kill() {
    let shell = shell().await;
    shell.vm.kill().await.unwrap();
    assert_eq!(shell.vm.status(), VmStatus::Exited(VmExit::Killed));
}

#[tokio::test]
async fn a_monitor_that_is_killed_is_a_failure_of_the_monitor_and_the_caller_lives_on() {
    let mut shell = shell().await;
    let id = i32::try_from(shell.vm.process_id().unwrap()).unwrap();

    kill_process(Pid::from_raw(id).unwrap(), Signal::KILL).unwrap();

    let exit = tokio::time::timeout(LIMIT, shell.vm.wait()).await.unwrap();
    let VmExit::MonitorFailure(failure) = &exit else {
        panic!("{exit:?}");
    };
    assert!(
        failure.reason.contains('9') || failure.reason.contains("KILL"),
        "{failure:?}"
    );
    let error = shell.console.wait_for("more", LIMIT).await.unwrap_err();
    assert!(matches!(error, Error::EndedEarly { .. }), "{error:?}");
}

#[tokio::test]
async fn the_power_button_shuts_a_guest_down_that_heeds_it() {
    let shell = shell().await;
    if !shell.vm.capabilities().power_button {
        let refused = shell.vm.stop(LIMIT).await.unwrap_err();
        assert!(matches!(refused, Error::Unsupported { .. }), "{refused:?}");
        return;
    }
    let report = shell.vm.stop(LIMIT).await.unwrap();
    let expected = StopReport {
        exit: VmExit::PoweredOff,
        killed: false,
    };
    assert_eq!(report, expected);
}

#[tokio::test]
async fn a_paused_guest_does_nothing_until_it_is_resumed() {
    let mut shell = shell().await;
    if !shell.vm.capabilities().pause {
        assert!(matches!(
            shell.vm.pause().await,
            Err(Error::Unsupported { .. })
        ));
        return;
    }
    shell.vm.pause().await.unwrap();
    assert_eq!(shell.vm.status(), VmStatus::Paused);
    shell.send("echo awake").await;
    let silent = shell
        .console
        .wait_for("awake", Duration::from_secs(1))
        .await;
    assert!(matches!(silent, Err(Error::Timeout { .. })));

    shell.vm.resume().await.unwrap();

    shell.console.wait_for("awake", LIMIT).await.unwrap();
    assert_eq!(shell.vm.status(), VmStatus::Running);
}
