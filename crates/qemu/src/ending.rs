//! How a VM ended, told from what was seen of it.

use capsa_core::{GuestPanic, MonitorFailure, VmExit};
use capsa_process::ChildEnd;
use capsa_process::console::PanicText;

/// What was seen by the time the process was gone.
#[derive(Debug)]
pub(crate) struct Evidence {
    /// QEMU's own word for why it ended (`ShutdownCause` in its QAPI schema).
    pub(crate) shutdown: Option<String>,
    /// The guest told of a panic through the panic device.
    pub(crate) panic_device: bool,
    /// The panic that the console showed.
    pub(crate) panic_text: Option<PanicText>,
    /// A CPU met a triple fault.
    pub(crate) triple_fault: bool,
    /// The caller ended it.
    pub(crate) killed: bool,
    /// Why QEMU was ended, where that was not what the caller wanted: it could not be steered, or a
    /// device could not go on.
    pub(crate) lost: Option<String>,
    /// How the process ended.
    pub(crate) end: ChildEnd,
}

impl Evidence {
    /// The verdict. What the guest did first counts, even where the caller killed it after that.
    pub(crate) fn exit(self) -> VmExit {
        let panic = || {
            VmExit::GuestPanic(GuestPanic {
                message: self.panic_text.clone().map(|panic| panic.message),
            })
        };
        match self.shutdown.as_deref() {
            Some("guest-shutdown") => VmExit::PoweredOff,
            Some("guest-panic") => panic(),
            // A kernel that panics may reset by a triple fault.
            Some("guest-reset") if self.panic_device || self.panic_text.is_some() => panic(),
            Some("guest-reset") if self.triple_fault => VmExit::TripleFault,
            Some("guest-reset") => VmExit::Reset,
            _ if self.killed => VmExit::Killed,
            Some(reason) => self.failure(&format!("QEMU ended for the reason {reason:?}")),
            None => match &self.lost {
                Some(reason) => self.failure(reason),
                None => self.failure(&format!("QEMU {}", self.end.reason)),
            },
        }
    }

    fn failure(&self, reason: &str) -> VmExit {
        VmExit::MonitorFailure(MonitorFailure {
            reason: reason.to_owned(),
            last_words: self.end.last_words.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use capsa_process::ExitReason;

    use super::*;

    fn evidence(shutdown: Option<&str>) -> Evidence {
        Evidence {
            shutdown: shutdown.map(str::to_owned),
            panic_device: false,
            panic_text: None,
            triple_fault: false,
            killed: false,
            lost: None,
            end: ChildEnd {
                reason: ExitReason::Status(0),
                last_words: "words".into(),
            },
        }
    }

    #[test]
    fn what_the_guest_did_is_told_apart() {
        let reset = Some("guest-reset");
        let panic_text = Some(PanicText {
            message: "oh".into(),
        });
        let panic = VmExit::GuestPanic(GuestPanic {
            message: Some("oh".into()),
        });

        assert_eq!(evidence(Some("guest-shutdown")).exit(), VmExit::PoweredOff);
        assert_eq!(evidence(reset).exit(), VmExit::Reset);
        let triple_fault = Evidence {
            triple_fault: true,
            ..evidence(reset)
        };
        assert_eq!(triple_fault.exit(), VmExit::TripleFault);
        let panic_and_reset = Evidence {
            triple_fault: true,
            panic_text,
            ..evidence(reset)
        };
        assert_eq!(panic_and_reset.exit(), panic);
        let silent_panic = evidence(Some("guest-panic")).exit();
        assert_eq!(silent_panic, VmExit::GuestPanic(GuestPanic::default()));
    }

    #[test]
    fn a_kill_is_told_from_an_end_that_somebody_else_made() {
        let killed = Evidence {
            killed: true,
            ..evidence(None)
        };
        assert_eq!(killed.exit(), VmExit::Killed);
        for shutdown in [None, Some("host-signal")] {
            let exit = evidence(shutdown).exit();
            assert!(matches!(exit, VmExit::MonitorFailure(_)), "{exit:?}");
        }
    }

    #[test]
    fn devices_that_cannot_go_on_are_a_monitor_failure_with_their_reason() {
        let failed = Evidence {
            lost: Some("device vsock0: oh".into()),
            ..evidence(None)
        };
        let VmExit::MonitorFailure(failure) = failed.exit() else {
            panic!("another end")
        };
        assert_eq!(failure.reason, "device vsock0: oh");
    }

    #[test]
    fn a_guest_that_powered_off_before_the_kill_powered_off() {
        let late = Evidence {
            killed: true,
            ..evidence(Some("guest-shutdown"))
        };
        assert_eq!(late.exit(), VmExit::PoweredOff);
    }
}
