//! Storage classes: what an object is put as, and what that costs: `archive.storage_class`, `archive.bulk_class`, `[[class]]`.
//!
//! The names are Amazon's. Other vendors have their own, which are passed on as they are; since nobody here knows whether what lies there must be
//! thawed before it can be read, that is said with the name: `instant:COLDLINE`, `frozen:ColdArchive`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use toml::de::{DeArray, DeTable, DeValue};

use super::layers::of_toml;
use super::value::Value;
use super::{Error, Fault, Place, prices};

/// A storage class of an object store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StorageClass {
    name: Cow<'static, str>,
    is_frozen: bool,
}

/// Those that need no explanation, and whether objects must be thawed to be read.
const KNOWN: [(&str, bool); 8] = [
    ("STANDARD", false),
    ("STANDARD_IA", false),
    ("ONEZONE_IA", false),
    ("INTELLIGENT_TIERING", false),
    ("REDUCED_REDUNDANCY", false),
    ("GLACIER_IR", false),
    ("GLACIER", true),
    ("DEEP_ARCHIVE", true),
];
/// What other vendors' names begin with, and what that says.
const OTHERS: [(&str, bool); 2] = [("instant", false), ("frozen", true)];
/// Letters of a vendor's name for a class.
const NAME_LENGTH_MAX: usize = 32;

impl StorageClass {
    /// What an object is of which nothing is said.
    pub const STANDARD: Self = Self { name: Cow::Borrowed("STANDARD"), is_frozen: false };

    /// The name, as it is told to the object store.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether an object must be asked for, hours before it can be read.
    pub fn is_frozen(&self) -> bool {
        self.is_frozen
    }

    /// Whether nothing need be said.
    pub fn is_standard(&self) -> bool {
        *self == Self::STANDARD
    }

    fn is_known(&self) -> bool {
        KNOWN.iter().any(|(name, _)| *name == self.name)
    }

    /// As it stands in the key of an object: the same as in a configuration, without a colon.
    pub fn in_key(&self) -> String {
        self.to_string().replace(':', "-")
    }

    /// Reads [`StorageClass::in_key`]; no other spellings.
    pub fn of_key(text: &str) -> Option<Self> {
        let class: Self = text.replacen('-', ":", 1).parse().ok()?;
        (class.in_key() == text).then_some(class)
    }
}

impl fmt::Display for StorageClass {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let others = OTHERS.iter().find(|(_, is_frozen)| *is_frozen == self.is_frozen).filter(|_| !self.is_known());
        match others {
            Some((how, _)) => write!(to, "{how}:{}", self.name),
            None => write!(to, "{}", self.name),
        }
    }
}

impl FromStr for StorageClass {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        if let Some((name, is_frozen)) = KNOWN.iter().find(|(name, _)| *name == text) {
            return Ok(Self { name: Cow::Borrowed(name), is_frozen: *is_frozen });
        }
        let unknown = || Fault::StorageClass(KNOWN.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "));
        let (how, name) = text.split_once(':').ok_or_else(unknown)?;
        let (_, is_frozen) = OTHERS.iter().find(|(word, _)| *word == how).ok_or_else(unknown)?;
        let is_name = (1..=NAME_LENGTH_MAX).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        // One class has one spelling, or its packs would count as those of two.
        if !is_name || KNOWN.iter().any(|(known, _)| *known == name) {
            return Err(unknown());
        }
        Ok(Self { name: Cow::Owned(name.to_owned()), is_frozen: *is_frozen })
    }
}

/// Reads a class of packs that are read now and then.
pub(super) fn instant(value: &Value) -> Result<StorageClass, Fault> {
    let class: StorageClass = value.text()?.parse()?;
    if class.is_frozen { Err(Fault::FrozenClass) } else { Ok(class) }
}

/// Reads a class of packs of layers; `none`: they have no packs of their own.
pub(super) fn bulk(value: &Value) -> Result<Option<StorageClass>, Fault> {
    match value.text()? {
        "none" => Ok(None),
        text => text.parse().map(Some),
    }
}

/// How fast an object is to thaw. What is asked for sooner costs more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// The cheapest.
    Bulk,
    /// The usual.
    Standard,
    /// In minutes, where there is such a thing.
    Expedited,
}

impl Tier {
    /// All, the cheapest first.
    pub const ALL: [Self; 3] = [Self::Bulk, Self::Standard, Self::Expedited];

    /// Its name, in small letters.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bulk => "bulk",
            Self::Standard => "standard",
            Self::Expedited => "expedited",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(self.name())
    }
}

impl FromStr for Tier {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|tier| tier.name() == text).ok_or_else(|| format!("{text:?} is none of bulk, standard, expedited"))
    }
}

/// What thawing costs in a tier.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ThawPrice {
    /// By then it is readable, nearly always.
    pub time: Duration,
    /// Dollars for a thousand requests.
    pub thousand: f64,
    /// Dollars for a GB.
    pub gb: f64,
}

/// What a class costs where it is not `[prices]` that says so. Dollars, as there.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassPrices {
    /// The class, as the object store calls it.
    pub name: Cow<'static, str>,
    /// A thousand of PUT, COPY and POST.
    pub put_thousand: f64,
    /// A thousand of GET and HEAD.
    pub get_thousand: f64,
    /// A GB stored for a month.
    pub storage_gb_month: f64,
    /// A GB that is read, for the reading.
    pub retrieval_gb: f64,
    /// What goes sooner is paid for so long.
    pub days_min: u64,
    /// By tier: bulk, standard, expedited; none where the class has no such tier.
    pub thaw: [Option<ThawPrice>; 3],
    /// Where and when these were the prices.
    pub source: Cow<'static, str>,
}

impl ClassPrices {
    const fn amazon(name: &'static str, [put, get, storage, retrieval]: [f64; 4], days_min: u64, thaw: [Option<ThawPrice>; 3]) -> Self {
        Self {
            name: Cow::Borrowed(name),
            put_thousand: put,
            get_thousand: get,
            storage_gb_month: storage,
            retrieval_gb: retrieval,
            days_min,
            thaw,
            source: Cow::Borrowed(AMAZON),
        }
    }

    /// What thawing costs in a tier, where the class has it.
    pub fn thaw(&self, tier: Tier) -> Option<ThawPrice> {
        self.thaw[tier as usize]
    }
}

const AMAZON: &str = "Amazon S3, us-east-1, list prices of 2025 (aws.amazon.com/s3/pricing)";
const HOUR: u64 = 3600;
const NO_THAW: [Option<ThawPrice>; 3] = [None; 3];

const fn thaw(seconds: u64, thousand: f64, gb: f64) -> Option<ThawPrice> {
    Some(ThawPrice { time: Duration::from_secs(seconds), thousand, gb })
}

/// Amazon's, but the standard one.
pub const AMAZON_CLASSES: &[ClassPrices] = &[
    ClassPrices::amazon("STANDARD_IA", [0.01, 0.001, 0.0125, 0.01], 30, NO_THAW),
    ClassPrices::amazon("ONEZONE_IA", [0.01, 0.001, 0.01, 0.01], 30, NO_THAW),
    ClassPrices::amazon("INTELLIGENT_TIERING", [0.005, 0.0004, 0.023, 0.0], 0, NO_THAW),
    ClassPrices::amazon("REDUCED_REDUNDANCY", [0.005, 0.0004, 0.024, 0.0], 0, NO_THAW),
    ClassPrices::amazon("GLACIER_IR", [0.02, 0.01, 0.004, 0.03], 90, NO_THAW),
    ClassPrices::amazon(
        "GLACIER",
        [0.03, 0.0004, 0.0036, 0.0],
        90,
        [thaw(12 * HOUR, 0.0, 0.0), thaw(5 * HOUR, 0.05, 0.01), thaw(300, 10.0, 0.03)],
    ),
    ClassPrices::amazon(
        "DEEP_ARCHIVE",
        [0.05, 0.0004, 0.00099, 0.0],
        180,
        [thaw(48 * HOUR, 0.025, 0.0025), thaw(12 * HOUR, 0.1, 0.02), None],
    ),
];

/// Most classes that a configuration prices.
const CLASSES_MAX: usize = 100;
pub(super) const KEYS: [&str; 16] = [
    "class.name",
    "class.put_thousand",
    "class.get_thousand",
    "class.storage_gb_month",
    "class.retrieval_gb",
    "class.days_min",
    "class.source",
    "class.bulk_time",
    "class.bulk_thousand",
    "class.bulk_gb",
    "class.standard_time",
    "class.standard_thousand",
    "class.standard_gb",
    "class.expedited_time",
    "class.expedited_thousand",
    "class.expedited_gb",
];
/// Where the tiers begin among them: three for each.
const TIERS_AT: usize = 7;

/// Reads the array: each goes before the one of that name that is built in.
pub(super) fn read(classes: &DeArray<'_>, place: &impl Fn(usize) -> Place) -> Result<Vec<ClassPrices>, Error> {
    let mut read: Vec<ClassPrices> = AMAZON_CLASSES.to_vec();
    for class in classes.iter() {
        let here = place(class.span().start);
        let DeValue::Table(table) = class.get_ref() else {
            return Err(Error::Syntax { place: here, what: "class is a list of storage classes; write each as [[class]]".to_owned() });
        };
        let class = class_of(table, here.clone(), place)?;
        read.retain(|known| known.name != class.name);
        if read.len() == CLASSES_MAX {
            return Err(Error::Syntax { place: here, what: format!("there are more than {CLASSES_MAX} classes") });
        }
        read.push(class);
    }
    Ok(read)
}

fn class_of(table: &DeTable<'_>, here: Place, place: &impl Fn(usize) -> Place) -> Result<ClassPrices, Error> {
    let wrong = |what: String| Err(Error::Syntax { place: here.clone(), what });
    let mut class = ClassPrices { source: Cow::Borrowed("this configuration"), ..ClassPrices::amazon("", [0.0; 4], 0, NO_THAW) };
    let mut numbers = [None::<f64>; KEYS.len()];
    for (key, value) in table.iter() {
        let (shown, name) = (of_toml(value.get_ref()), format!("class.{}", key.get_ref()));
        let Some(at) = KEYS.iter().position(|known| *known == name) else {
            let near = KEYS.iter().find(|known| known.starts_with(&name) || name.starts_with(**known)).map(|near| (*near).to_owned());
            return Err(Error::Unknown { place: place(key.span().start), name, near });
        };
        let number = match KEYS[at] {
            "class.name" => shown.text().and_then(str::parse::<StorageClass>).map(|parsed| class.name = parsed.name).map(|()| 0.0),
            "class.source" => prices::source(&shown).map(|source| class.source = source).map(|()| 0.0),
            "class.days_min" => shown.number(0, 3650).map(|days| class.days_min = days as u64).map(|()| 0.0),
            time if time.ends_with("_time") => shown.duration("1s", "30d").map(|time| time.as_secs_f64()),
            _ => prices::price(&shown),
        };
        let fault = |fault| Error::Value { place: place(value.span().start), key: KEYS[at], value: shown.shown(), fault };
        numbers[at] = Some(number.map_err(fault)?);
    }
    // What is not said would count as free.
    if let Some(missing) = (0..5).find(|at| numbers[*at].is_none()) {
        return wrong(format!("a [[class]] needs a name and what it costs; {} is missing", KEYS[missing]));
    }
    [class.put_thousand, class.get_thousand, class.storage_gb_month, class.retrieval_gb] =
        [1, 2, 3, 4].map(|at| numbers[at].unwrap_or_default());
    for (tier, said) in Tier::ALL.into_iter().zip(numbers[TIERS_AT..].chunks(3)) {
        class.thaw[tier as usize] = match said {
            [None, None, None] => None,
            [Some(time), Some(thousand), Some(gb)] => {
                Some(ThawPrice { time: Duration::from_secs_f64(*time), thousand: *thousand, gb: *gb })
            }
            _ => return wrong(format!("the class {} needs {tier}_time, {tier}_thousand and {tier}_gb, or none of them", class.name)),
        };
    }
    Ok(class)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_has_one_spelling() {
        for text in ["STANDARD", "GLACIER", "DEEP_ARCHIVE", "INTELLIGENT_TIERING", "instant:COLDLINE", "frozen:ColdArchive"] {
            let class: StorageClass = text.parse().expect("a class");
            assert_eq!(class.to_string(), text);
            assert_eq!(StorageClass::of_key(&class.in_key()), Some(class.clone()), "{text}");
            assert_eq!(class.is_frozen(), text.starts_with("frozen:") || ["GLACIER", "DEEP_ARCHIVE"].contains(&text));
        }
        let long = format!("frozen:{}", "X".repeat(NAME_LENGTH_MAX + 1));
        for bad in ["", "glacier", "COLDLINE", "frozen:", "frozen:a-b", "frozen:a/b", "frozen:GLACIER", "instant:GLACIER", "warm:X", &long]
        {
            let fault = bad.parse::<StorageClass>().expect_err(bad);
            assert!(fault.to_string().contains("DEEP_ARCHIVE") && fault.to_string().contains("frozen:"), "{fault}");
        }
        assert_eq!("frozen:ColdArchive".parse::<StorageClass>().expect("a class").name(), "ColdArchive");
        assert_eq!(StorageClass::of_key("frozen:X"), None);
    }

    #[test]
    fn packs_that_are_read_now_and_then_are_not_frozen() {
        let text = |text: &str| Value::Text(text.to_owned());
        assert_eq!(instant(&text("GLACIER")), Err(Fault::FrozenClass));
        assert_eq!(instant(&text("frozen:X")), Err(Fault::FrozenClass));
        assert!(instant(&text("GLACIER_IR")).is_ok());
        assert_eq!(bulk(&text("none")), Ok(None));
        assert!(bulk(&text("DEEP_ARCHIVE")).is_ok_and(|class| class.is_some_and(|class| class.is_frozen())));
    }

    #[test]
    fn tiers_have_names_and_every_frozen_class_has_one() {
        for tier in Tier::ALL {
            assert_eq!(tier.name().parse(), Ok(tier));
        }
        for class in AMAZON_CLASSES {
            let known: StorageClass = class.name.parse().expect("a class that is known");
            assert_eq!(known.is_frozen(), class.thaw.iter().any(Option::is_some), "{known}");
        }
    }
}
