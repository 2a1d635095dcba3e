//! What a network's refusals become.

use capsa_core::{Error, NetworkErrorKind};
use capsa_net::{ConfigError, ControlError, Refusal};
use capsa_network::StartError;

/// A setting of a network, or of a guest on it, that cannot be.
pub(crate) fn setting(network: &str, error: &ConfigError) -> Error {
    network_error(network, NetworkErrorKind::Setting, error)
}

pub(crate) fn control(network: &str, error: &ControlError) -> Error {
    let kind = match error {
        ControlError::Ended => NetworkErrorKind::Ended,
        ControlError::Refused(refusal) => match refusal {
            Refusal::NoGuest(_) | Refusal::NoForward => NetworkErrorKind::NotFound,
            Refusal::Setting(_) => NetworkErrorKind::Setting,
            Refusal::InUse(_) => NetworkErrorKind::PortInUse,
            Refusal::NotPermitted(_) => NetworkErrorKind::NotPermitted,
            _ => NetworkErrorKind::System,
        },
        _ => NetworkErrorKind::System,
    };
    network_error(network, kind, error)
}

pub(crate) fn start(network: &str, error: &StartError) -> Error {
    let kind = match error {
        StartError::Config(_) => NetworkErrorKind::Setting,
        StartError::Ended(_) => NetworkErrorKind::Ended,
        _ => NetworkErrorKind::System,
    };
    network_error(network, kind, error)
}

pub(crate) fn network_error(network: &str, kind: NetworkErrorKind, reason: impl ToString) -> Error {
    Error::Network {
        network: network.to_owned(),
        kind,
        reason: reason.to_string(),
    }
}
