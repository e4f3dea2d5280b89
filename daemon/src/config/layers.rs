//! The places where settings stand, read in their order: the file, the environment, the flags; then what only shows when
//! all are known.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use crate::age::InvalidRecipient;

use super::auth;
use super::class;
use super::retention;
use super::sealing;
use super::settings::{self, Draft, SETTINGS, Setting};
use super::tls;
use super::value::Value;
use super::{ARCHIVE_FOLDER, Ack, ArchiveUrl, Config, Error, Fault, Flags, Place};

/// No configuration is longer.
const FILE_SIZE_MAX: u64 = 1024 * 1024;
const VARIABLE_PREFIX: &str = "LARDER_";
const CONFIG_VARIABLE: &str = "LARDER_CONFIG";
const DATA_DIR_VARIABLE: &str = "LARDER_DATA_DIR";

/// See [`Config::load`].
pub(super) fn load(
    path: Option<&Path>,
    flags: &Flags,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Config, Error> {
    let (variables, from_variable) = variables(environment);
    let mut layers =
        Layers { draft: Draft { config: Config::default(), archive_in_data_dir: true, no_address: false }, places: HashMap::new() };
    if let Some(path) = path.map(Path::to_owned).or(from_variable) {
        let text = read(&path)?;
        layers.file(&path, &text)?;
    }
    layers.variables(variables)?;
    layers.flags(flags)?;
    layers.finish()
}

struct Layers {
    draft: Draft,
    /// Where the setting in force stands, and what is written there.
    places: HashMap<&'static str, (Place, String)>,
}

impl Layers {
    fn apply(&mut self, setting: &'static Setting, place: Place, value: &Value) -> Result<(), Error> {
        if let Err(fault) = (setting.apply)(&mut self.draft, value) {
            let is_secret = matches!(fault, Fault::Credentials | Fault::Recipient(InvalidRecipient::Identity));
            let value = if is_secret { "(not repeated here)".to_owned() } else { value.shown() };
            return Err(Error::Value { place, key: setting.name, value, fault });
        }
        self.places.insert(setting.name, (place, value.shown()));
        Ok(())
    }

    fn file(&mut self, path: &Path, text: &str) -> Result<(), Error> {
        let place = |start: usize| Place::File { path: path.to_owned(), line: 1 + text[..start.min(text.len())].matches('\n').count() };
        let parsed = DeTable::parse(text).map_err(|error| Error::Syntax {
            place: place(error.span().map(|span| span.start).unwrap_or_default()),
            what: error.message().split_whitespace().collect::<Vec<_>>().join(" "),
        })?;
        // In the order of the file, so that the first mistake is the one that is told.
        let mut entries: Vec<_> = parsed.get_ref().iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let name = key.get_ref().as_ref();
            if let Some(setting) = settings::find(name).filter(|setting| setting.section().is_empty()) {
                self.apply(setting, place(value.span().start), &of_toml(value.get_ref()))?;
                continue;
            }
            let here = place(key.span().start);
            if let ("retention", DeValue::Array(rules)) = (name, value.get_ref()) {
                self.draft.config.retention = retention::read(rules, &place)?;
                continue;
            }
            if let ("oidc", DeValue::Array(issuers)) = (name, value.get_ref()) {
                self.draft.config.oidc = auth::read(issuers, &place)?;
                continue;
            }
            if let ("class", DeValue::Array(classes)) = (name, value.get_ref()) {
                self.draft.config.prices.classes = class::read(classes, &place)?.into();
                continue;
            }
            if name == "class" {
                return Err(Error::Syntax { place: here, what: "class is a list of storage classes; write [[class]]".to_owned() });
            }
            if name == "oidc" {
                return Err(Error::Syntax { place: here, what: "oidc is a list of issuers; write [[oidc]]".to_owned() });
            }
            if name == "retention" {
                return Err(Error::Syntax { place: here, what: "retention is a list of rules; write [[retention]]".to_owned() });
            }
            let known = SETTINGS.iter().any(|setting| !name.is_empty() && setting.section() == name);
            match value.get_ref() {
                DeValue::Table(section) if known => self.section(name, section, &place)?,
                DeValue::Table(_) => {
                    return Err(Error::Unknown { place: here, name: format!("[{name}]"), near: settings::near_section(name) });
                }
                _ if known => {
                    return Err(Error::Syntax { place: here, what: format!("{name} is a section and takes no value; write [{name}]") });
                }
                _ => return Err(Error::Unknown { place: here, name: name.to_owned(), near: settings::near_key("", name) }),
            }
        }
        Ok(())
    }

    fn section(&mut self, section: &str, table: &DeTable<'_>, place: &impl Fn(usize) -> Place) -> Result<(), Error> {
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let name = format!("{section}.{}", key.get_ref());
            let Some(setting) = settings::find(&name) else {
                return Err(Error::Unknown { place: place(key.span().start), near: settings::near_key(section, key.get_ref()), name });
            };
            self.apply(setting, place(value.span().start), &of_toml(value.get_ref()))?;
        }
        Ok(())
    }

    fn variables(&mut self, variables: Vec<(String, OsString)>) -> Result<(), Error> {
        for (name, value) in variables {
            let place = Place::Variable(name.clone());
            let Some(setting) = SETTINGS.iter().find(|setting| setting.variable() == name) else {
                // Others may have variables that begin alike: tests, orchestrators. Two underscores, or a setting's name
                // with one instead of two, can't be theirs.
                let flat = |text: &str| text.replace("__", "_").to_ascii_uppercase();
                let ours = name.contains("__") || SETTINGS.iter().any(|setting| flat(&setting.variable()) == flat(&name));
                if ours {
                    return Err(Error::Unknown { place, near: settings::near_variable(&name), name });
                }
                continue;
            };
            if setting.name == "data_dir" {
                if !value.is_empty() {
                    self.data_dir(place, PathBuf::from(value))?;
                }
                continue;
            }
            let value = match value.into_string() {
                Ok(text) => Value::Word(text),
                Err(bytes) => Value::Other(format!("{bytes:?}")),
            };
            self.apply(setting, place, &value)?;
        }
        Ok(())
    }

    fn flags(&mut self, flags: &Flags) -> Result<(), Error> {
        if let Some(path) = &flags.data_dir {
            self.data_dir(Place::Flag("--data-dir"), path.clone())?;
        }
        let words = [
            ("--listen", "http.listen", &flags.listen),
            ("--peer-listen", "peers.listen", &flags.peer_listen),
            ("--archive", "archive.url", &flags.archive),
        ];
        for (flag, name, value) in words {
            if let Some(value) = value {
                let setting = settings::find(name).expect("the names above are in the table, and a test passes each");
                self.apply(setting, Place::Flag(flag), &Value::Word(value.clone()))?;
            }
        }
        Ok(())
    }

    /// Paths of variables and flags need not be text.
    fn data_dir(&mut self, place: Place, path: PathBuf) -> Result<(), Error> {
        match path.to_str() {
            Some(text) => {
                let setting = settings::find("data_dir").expect("data_dir is in the table");
                self.apply(setting, place, &Value::Word(text.to_owned()))
            }
            None => {
                self.draft.config.data_dir = path;
                Ok(())
            }
        }
    }

    /// What only shows when all settings are known.
    fn finish(mut self) -> Result<Config, Error> {
        let config = &self.draft.config;
        if let Err((key, fault)) = tls::check(&config.http, &config.tls, &config.acme) {
            return Err(self.fault(key, fault));
        }
        if let Err((key, fault)) = sealing::check(&config.archive) {
            return Err(self.fault(key, fault));
        }
        if self.draft.archive_in_data_dir && config.archive.endpoint.is_some() {
            return Err(self.fault("archive.endpoint", Fault::NoBucket));
        }
        let server = &config.token_server;
        let parts = [server.realm.is_some(), !server.issuer.is_empty(), !server.service.is_empty(), server.jwks.is_some()];
        if parts != [false; 4] && parts != [true; 4] {
            let names = ["token_server.realm", "token_server.issuer", "token_server.service", "token_server.jwks"];
            let there = parts.iter().position(|part| *part).unwrap_or_default();
            return Err(self.fault(names[there], Fault::TokenServer));
        }
        if config.store.low_water >= config.store.high_water {
            return Err(self.fault("store.low_water", Fault::WaterMarks { high: config.store.high_water }));
        }
        if config.push.ack == Ack::Archived && config.archive.url.is_none() && !self.draft.archive_in_data_dir {
            return Err(self.fault("push.ack", Fault::AckWithoutArchive));
        }
        let is_folder = self.draft.archive_in_data_dir || matches!(config.archive.url, Some(ArchiveUrl::Directory(_)));
        if is_folder && !config.archive.storage_class.is_standard() {
            return Err(self.fault("archive.storage_class", Fault::ClassOfFolder));
        }
        if is_folder && config.archive.bulk_class.is_some() {
            return Err(self.fault("archive.bulk_class", Fault::ClassOfFolder));
        }
        let listen = config.peers.listen;
        let advertised = self.places.contains_key("peers.advertise") && !config.peers.advertise.is_empty();
        if !advertised && !self.draft.no_address {
            if listen.ip().is_unspecified() {
                return Err(self.fault("peers.listen", Fault::Undialable));
            }
            self.draft.config.peers.advertise = vec![listen.to_string()];
        }
        let mut config = self.draft.config;
        if self.draft.archive_in_data_dir {
            config.archive.url = Some(ArchiveUrl::Directory(config.data_dir.join(ARCHIVE_FOLDER)));
        }
        Ok(config)
    }

    fn fault(&self, key: &'static str, fault: Fault) -> Error {
        let (place, value) = self.places.get(key).cloned().unwrap_or((Place::Default, "(its default)".to_owned()));
        Error::Value { place, key, value, fault }
    }
}

/// The variables that may be settings, in the order of their names, and the file that `LARDER_CONFIG` names.
fn variables(environment: impl IntoIterator<Item = (OsString, OsString)>) -> (Vec<(String, OsString)>, Option<PathBuf>) {
    let (mut variables, mut path) = (Vec::new(), None);
    for (name, value) in environment {
        let Some(name) = name.to_str().filter(|name| name.starts_with(VARIABLE_PREFIX)) else { continue };
        if name == CONFIG_VARIABLE {
            path = Some(value).filter(|value| !value.is_empty()).map(PathBuf::from);
        } else {
            variables.push((name.to_owned(), value));
        }
    }
    variables.sort();
    (variables, path)
}

/// The value of `LARDER_DATA_DIR`, when it says anything, and likewise of `LARDER_CONFIG`.
pub(super) fn folder_and_file(environment: impl IntoIterator<Item = (OsString, OsString)>) -> (Option<PathBuf>, Option<PathBuf>) {
    let (variables, path) = variables(environment);
    let folder = variables.into_iter().find(|(name, value)| name == DATA_DIR_VARIABLE && !value.is_empty());
    (folder.map(|(_, value)| PathBuf::from(value)), path)
}

fn read(path: &Path) -> Result<String, Error> {
    let error = |source| Error::Read { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(error)?;
    let mut text = String::new();
    file.take(FILE_SIZE_MAX + 1).read_to_string(&mut text).map_err(error)?;
    if text.len() as u64 > FILE_SIZE_MAX {
        return Err(Error::Long { path: path.to_owned(), most: FILE_SIZE_MAX });
    }
    Ok(text)
}

pub(super) fn of_toml(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        // Other bases are for file modes and the like; nothing here is one.
        DeValue::Integer(number) if number.radix() == 10 => Value::Integer(number.as_str().trim_start_matches('+').to_owned()),
        DeValue::Integer(number) => Value::Other(number.to_string()),
        DeValue::Boolean(value) => Value::Boolean(*value),
        DeValue::Array(array) => {
            let texts: Option<Vec<String>> = array.iter().map(|value| value.get_ref().as_str().map(str::to_owned)).collect();
            texts.map(Value::List).unwrap_or_else(|| Value::Other("[...]".to_owned()))
        }
        DeValue::Float(number) => Value::Other(number.as_str().to_owned()),
        DeValue::Datetime(time) => Value::Other(time.to_string()),
        DeValue::Table(_) => Value::Other("{...}".to_owned()),
    }
}
