//! Policies as programs that the kernel runs at each system call.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

use super::policy::{Policy, Rule, When};
use super::refusal;

/// A compiled policy.
#[derive(Clone, Debug)]
pub struct Filter {
    thread: &'static str,
    allow: BpfProgram,
    /// Calls that fail without ending the process.
    pretend: Option<BpfProgram>,
}

/// Why a policy cannot be compiled.
#[derive(Debug, thiserror::Error)]
#[error("the system call policy of {thread} threads cannot be used: {reason}")]
pub struct FilterError {
    thread: &'static str,
    reason: String,
}

impl Filter {
    /// Compiles a policy. Some ten microseconds; does not allocate later.
    ///
    /// # Errors
    /// The policy has a mistake, or this processor is not supported.
    pub fn compile(policy: &Policy) -> Result<Self, FilterError> {
        let failed = |error: seccompiler::BackendError| FilterError {
            thread: policy.thread,
            reason: error.to_string(),
        };
        let arch: TargetArch = std::env::consts::ARCH.try_into().map_err(failed)?;
        let all = || policy.rules.iter().copied().flatten();
        // What is to look missing passes here: of two filters the stricter answer counts, and a trap
        // is stricter than an error.
        let allow = program(all(), SeccompAction::Trap, SeccompAction::Allow, arch);
        let missing = SeccompAction::Errno(libc::ENOSYS as u32);
        let pretend = all().any(|rule| rule.missing).then(|| {
            let rules = all().filter(|rule| rule.missing);
            program(rules, SeccompAction::Allow, missing, arch)
        });
        Ok(Self {
            thread: policy.thread,
            allow: allow.map_err(failed)?,
            pretend: pretend.transpose().map_err(failed)?,
        })
    }

    /// Puts the policy in force on the calling thread and those that it starts, for ever. A call that
    /// it does not allow ends the process, with a message on standard error that names the call.
    ///
    /// # Errors
    /// The kernel has no such filters.
    pub fn install(&self) -> io::Result<()> {
        refusal::watch(self.thread)?;
        if let Some(pretend) = &self.pretend {
            apply_filter(pretend).map_err(io::Error::other)?;
        }
        apply_filter(&self.allow).map_err(io::Error::other)
    }
}

fn program<'r>(
    rules: impl Iterator<Item = &'r Rule>,
    otherwise: SeccompAction,
    matched: SeccompAction,
    arch: TargetArch,
) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut calls: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut unconditional = BTreeSet::new();
    for rule in rules {
        let alternatives = calls.entry(rule.call).or_default();
        if rule.when.is_empty() {
            unconditional.insert(rule.call);
        } else {
            let conditions: Result<Vec<_>, _> = rule.when.iter().map(condition).collect();
            alternatives.push(SeccompRule::new(conditions?)?);
        }
    }
    // No alternatives at all stand for any arguments.
    for call in unconditional {
        calls.insert(call, Vec::new());
    }
    SeccompFilter::new(calls, otherwise, matched, arch)?.try_into()
}

fn condition(when: &When) -> Result<SeccompCondition, seccompiler::BackendError> {
    let (argument, length, operator, value) = match *when {
        When::Is(argument, value) => (
            argument,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::Eq,
            u64::from(value),
        ),
        When::Without(argument, bits) => (
            argument,
            SeccompCmpArgLen::Qword,
            SeccompCmpOp::MaskedEq(bits),
            0,
        ),
        When::With(argument, bits) => (
            argument,
            SeccompCmpArgLen::Qword,
            SeccompCmpOp::MaskedEq(bits),
            bits,
        ),
        When::Ourselves(argument) => (
            argument,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::Eq,
            u64::from(std::process::id()),
        ),
    };
    SeccompCondition::new(argument, length, operator, value)
}
