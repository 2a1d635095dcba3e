//! What a network's keeper is asked, and answers: one request a connection.

use capsa_net::NetworkConfig;
use serde::{Deserialize, Serialize};

use crate::keepers::wire_error::WireError;

/// What the keeper is started with.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Start {
    pub(super) config: NetworkConfig,
}

/// A request.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// The connection goes on as a network's control socket; guests that come by it go with it.
    Join,
    /// To end, unless there are guests.
    End {
        /// Whoever is there.
        force: bool,
    },
}

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    /// The control socket begins.
    Joined(Box<Facts>),
    /// It has ended, and nothing is left of it but the process, with which the connection ends.
    Ended,
    /// It has not, because these are on it.
    HasGuests(Vec<String>),
    Failed(WireError),
}

/// What whoever joins has to know.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Facts {
    pub(super) config: NetworkConfig,
}
