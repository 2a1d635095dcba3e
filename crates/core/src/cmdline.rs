use std::fmt;

/// The longest kernel command line, in bytes without the closing NUL: x86 and arm64 Linux keep
/// 2,048 with it (`COMMAND_LINE_SIZE`).
pub const MAX_COMMAND_LINE_BYTES: usize = 2047;

/// Why a kernel command line cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandLineError {
    /// It does not fit.
    #[error(
        "the kernel command line has {length} bytes, and at most {MAX_COMMAND_LINE_BYTES} fit: \
         shorten it by {}", length - MAX_COMMAND_LINE_BYTES
    )]
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// It holds a byte that no kernel can be given.
    #[error(
        "the kernel command line holds the control character {character:?} at byte {position}: \
         remove it"
    )]
    ControlCharacter {
        /// The character.
        character: char,
        /// Where it stands, in bytes from the start.
        position: usize,
    },
}

/// A kernel command line that is put together from defaults and the caller's own parameters.
///
/// Parameters are parted by white space; double quotes keep it (`key="a b"`). What the caller gives
/// wins over a default of the same name.
///
/// ```
/// use capsa_core::CommandLine;
/// let mut line = CommandLine::new("console=ttyS0 root=/dev/vda")?;
/// line.default_parameter("panic=-1");
/// line.default_parameter("root=/dev/ram0");
/// assert_eq!(line.to_string(), "panic=-1 console=ttyS0 root=/dev/vda");
/// # Ok::<(), capsa_core::CommandLineError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    defaults: Vec<String>,
    given: String,
}

impl CommandLine {
    /// Starts from the caller's own parameters.
    ///
    /// # Errors
    /// [`CommandLineError`] where they are too long or hold a control character.
    pub fn new(given: &str) -> Result<Self, CommandLineError> {
        let given = given.trim();
        if let Some((position, character)) = given
            .char_indices()
            .find(|(_, c)| c.is_control() && *c != '\t')
        {
            return Err(CommandLineError::ControlCharacter {
                character,
                position,
            });
        }
        let line = Self {
            defaults: Vec::new(),
            given: given.to_owned(),
        };
        line.check_length()?;
        Ok(line)
    }

    /// Adds `parameter`, unless the caller or an earlier default has one of the same name.
    pub fn default_parameter(&mut self, parameter: &str) {
        let name = name_of(parameter);
        let taken = self.defaults.iter().any(|known| name_of(known) == name)
            || parameters(&self.given).any(|known| name_of(known) == name);
        if !taken {
            self.defaults.push(parameter.to_owned());
        }
    }

    /// Adds a parameter whose name may come several times.
    pub fn add_parameter(&mut self, parameter: &str) {
        self.defaults.push(parameter.to_owned());
    }

    /// The value of the last parameter called `name`: empty for one without `=`.
    pub fn last_value(&self, name: &str) -> Option<&str> {
        self.parameters()
            .filter(|parameter| name_of(parameter) == name)
            .last()
            .map(|parameter| parameter.split_once('=').map_or("", |(_, value)| value))
    }

    /// Whether a parameter called `name` is there.
    pub fn has(&self, name: &str) -> bool {
        self.last_value(name).is_some()
    }

    /// Every parameter, defaults first.
    pub fn parameters(&self) -> impl Iterator<Item = &str> {
        self.defaults
            .iter()
            .map(String::as_str)
            .chain(parameters(&self.given))
    }

    /// The finished line.
    ///
    /// # Errors
    /// [`CommandLineError::TooLong`] where defaults and given parameters together do not fit.
    pub fn finish(&self) -> Result<String, CommandLineError> {
        self.check_length()?;
        Ok(self.to_string())
    }

    fn check_length(&self) -> Result<(), CommandLineError> {
        let length = self.to_string().len();
        if length > MAX_COMMAND_LINE_BYTES {
            return Err(CommandLineError::TooLong { length });
        }
        Ok(())
    }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for default in &self.defaults {
            write!(f, "{default} ")?;
        }
        f.write_str(&self.given)
    }
}

fn name_of(parameter: &str) -> &str {
    parameter
        .split_once('=')
        .map_or(parameter, |(name, _)| name)
}

/// Splits at white space outside double quotes, as the kernel's `next_arg` does. What stands behind
/// a lone `--` is for init and not looked at.
fn parameters(line: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    line.split(move |c: char| {
        if c == '"' {
            quoted = !quoted;
        }
        c.is_ascii_whitespace() && !quoted
    })
    .filter(|parameter| !parameter.is_empty())
    .take_while(|parameter| *parameter != "--")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_white_space_stays_in_its_parameter() {
        let line = CommandLine::new(r#"dyndbg="file a +p; b" quiet"#).unwrap();
        assert_eq!(
            line.parameters().collect::<Vec<_>>(),
            [r#"dyndbg="file a +p; b""#, "quiet"]
        );
    }

    #[test]
    fn the_last_console_is_the_one_that_counts() {
        let line = CommandLine::new("console=ttyS0,115200 console=hvc0 -- console=tty9").unwrap();
        assert_eq!(line.last_value("console"), Some("hvc0"));
    }

    #[test]
    fn a_line_at_the_limit_passes_and_one_byte_more_is_refused() {
        assert!(CommandLine::new(&"x".repeat(MAX_COMMAND_LINE_BYTES)).is_ok());
        let error = CommandLine::new(&"x".repeat(MAX_COMMAND_LINE_BYTES + 1)).unwrap_err();
        assert_eq!(
            error,
            CommandLineError::TooLong {
                length: MAX_COMMAND_LINE_BYTES + 1
            }
        );
        assert!(error.to_string().contains("shorten it by 1"), "{error}");
    }

    #[test]
    fn defaults_that_make_the_line_too_long_are_refused_at_the_end() {
        let mut line = CommandLine::new(&"x".repeat(MAX_COMMAND_LINE_BYTES)).unwrap();
        line.default_parameter("panic=-1");
        assert!(matches!(
            line.finish(),
            Err(CommandLineError::TooLong { .. })
        ));
    }

    #[test]
    fn nul_and_newline_are_refused_with_their_position() {
        for text in ["a\0b", "a\nb"] {
            let error = CommandLine::new(text).unwrap_err();
            assert!(
                matches!(
                    error,
                    CommandLineError::ControlCharacter { position: 1, .. }
                ),
                "{error}"
            );
        }
    }
}
