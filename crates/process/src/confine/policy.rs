//! System call policies as data, to be read as lists.

/// Which system calls a kind of thread may make.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// The kind of thread, for messages.
    pub thread: &'static str,
    /// What it may call. Anything else ends the process.
    pub rules: &'static [&'static [Rule]],
}

/// One system call.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    pub(super) call: i64,
    pub(super) when: &'static [When],
    pub(super) missing: bool,
}

/// What an argument has to be.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// Argument (0 to 5) is this value, in its lower 32 bits.
    Is(u8, u32),
    /// Argument has none of these bits.
    Without(u8, u64),
    /// Argument has all of these bits.
    With(u8, u64),
    /// Argument is this process's number.
    Ourselves(u8),
}

/// The call, whatever its arguments.
pub const fn allow(call: i64) -> Rule {
    allow_when(call, &[])
}

/// The call where all of `when` hold. Several rules for one call are alternatives.
pub const fn allow_when(call: i64, when: &'static [When]) -> Rule {
    Rule {
        call,
        when,
        missing: false,
    }
}

/// The call fails as if the kernel did not have it, and the process goes on: for what libraries try
/// and can do without.
pub const fn pretend_missing(call: i64) -> Rule {
    Rule {
        call,
        when: &[],
        missing: true,
    }
}
