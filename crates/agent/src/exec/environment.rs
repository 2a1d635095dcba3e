//! The environment of a command.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use capsa_agent_protocol::ByteString;
use capsa_agent_protocol::exec::ExecRequest;

use super::users::User;

/// Where programs are looked for, unless the host says something else.
pub(crate) const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What nearly every program knows, for a terminal of which the host says nothing.
const TERMINAL: &str = "xterm";

/// What the boot message gives to every command.
static FOR_ALL: Mutex<Vec<(ByteString, ByteString)>> = Mutex::new(Vec::new());

/// Gives these to every command from now on.
pub(crate) fn set_for_all(variables: Vec<(ByteString, ByteString)>) {
    *FOR_ALL.lock().unwrap_or_else(PoisonError::into_inner) = variables;
}

/// The variables of a command, by name.
pub(super) type Variables = BTreeMap<Vec<u8>, Vec<u8>>;

pub(super) fn variables(request: &ExecRequest, user: &User) -> Variables {
    let mut variables = Variables::new();
    if !request.clear_environment {
        let mut set = |name: &str, value: &[u8]| {
            variables.insert(name.as_bytes().to_vec(), value.to_vec());
        };
        set("PATH", SEARCH_PATH.as_bytes());
        set("HOME", user.home.as_os_str().as_encoded_bytes());
        if !user.name.is_empty() {
            set("USER", &user.name);
            set("LOGNAME", &user.name);
        }
        if request.terminal.is_some() {
            set("TERM", TERMINAL.as_bytes());
        }
        let for_all = FOR_ALL.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, value) in for_all.iter() {
            variables.insert(name.0.clone(), value.0.clone());
        }
    }
    for (name, value) in &request.environment {
        match value {
            Some(value) => variables.insert(name.0.clone(), value.0.clone()),
            None => variables.remove(&name.0),
        };
    }
    variables
}
