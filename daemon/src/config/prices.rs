//! What a bucket's vendor charges: `[prices]`. Nothing is decided by them that could lose anything; they say what things cost.

use std::borrow::Cow;

use super::Fault;
use super::class::{AMAZON_CLASSES, ClassPrices};
use super::value::Value;

/// Dollars, or whatever the vendor's bill is in.
#[derive(Clone, Debug, PartialEq)]
pub struct Prices {
    /// A thousand of PUT, COPY, POST and LIST: of the standard class, as all that follows.
    pub put_thousand: f64,
    /// A thousand of GET and HEAD. DELETE is free everywhere.
    pub get_thousand: f64,
    /// A GB (10^9 bytes) stored for a month.
    pub storage_gb_month: f64,
    /// A GB that is read, for the reading: classes that are not read often charge for it.
    pub retrieval_gb: f64,
    /// A GB that is read, for its way out of the vendor's network.
    pub transfer_gb: f64,
    /// A thousand requests to `archive.read_url`.
    pub read_url_thousand: f64,
    /// A GB that comes from there.
    pub read_url_gb: f64,
    /// Where and when these were the prices.
    pub source: Cow<'static, str>,
    /// Of the other classes.
    pub classes: Cow<'static, [ClassPrices]>,
}

impl Prices {
    /// What a class costs; one of which nothing is said, what the standard one does.
    pub fn of(&self, class: &str) -> ClassPrices {
        self.classes.iter().find(|known| known.name == class).cloned().unwrap_or_else(|| ClassPrices {
            name: class.to_owned().into(),
            put_thousand: self.put_thousand,
            get_thousand: self.get_thousand,
            storage_gb_month: self.storage_gb_month,
            retrieval_gb: self.retrieval_gb,
            days_min: 0,
            thaw: [None; 3],
            source: self.source.clone(),
        })
    }
}

/// Amazon S3, class Standard, first tier of each price.
pub const S3_STANDARD: Prices = Prices {
    put_thousand: 0.005,
    get_thousand: 0.0004,
    storage_gb_month: 0.023,
    retrieval_gb: 0.0,
    transfer_gb: 0.09,
    read_url_thousand: 0.001,
    read_url_gb: 0.085,
    source: Cow::Borrowed(
        "Amazon S3 Standard, us-east-1, and CloudFront, list prices of 2025 (aws.amazon.com/s3/pricing); reading from within the region has no transfer",
    ),
    classes: Cow::Borrowed(AMAZON_CLASSES),
};

/// A folder costs nothing but its disk.
pub const FOLDER: Prices = Prices {
    put_thousand: 0.0,
    get_thousand: 0.0,
    storage_gb_month: 0.0,
    retrieval_gb: 0.0,
    transfer_gb: 0.0,
    read_url_thousand: 0.0,
    read_url_gb: 0.0,
    source: Cow::Borrowed("a folder on this host: nothing is paid for"),
    classes: Cow::Borrowed(&[]),
};

/// The dearest that anything may be, to catch slips.
const PRICE_MAX: f64 = 1_000_000.0;

/// Letters of the text that says where prices are from.
const SOURCE_LENGTH_MAX: usize = 200;

/// Reads a price: `0.023`, with quotes or without.
pub(super) fn price(value: &Value) -> Result<f64, Fault> {
    let wrong = Fault::Type { wanted: "a price, as in 0.023" };
    let text = match value {
        Value::Text(text) | Value::Word(text) | Value::Integer(text) | Value::Other(text) => text.trim(),
        Value::Boolean(_) | Value::List(_) => return Err(wrong),
    };
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return Err(wrong);
    }
    match text.parse::<f64>() {
        Ok(price) if price <= PRICE_MAX => Ok(price),
        Ok(_) => Err(Fault::Bounds { least: "0".to_owned(), most: PRICE_MAX.to_string() }),
        Err(_) => Err(wrong),
    }
}

/// Reads what is said of prices.
pub(super) fn source(value: &Value) -> Result<Cow<'static, str>, Fault> {
    let text = value.text()?;
    let is_plain = !text.is_empty() && text.chars().count() <= SOURCE_LENGTH_MAX && !text.chars().any(char::is_control);
    if is_plain { Ok(text.to_owned().into()) } else { Err(Fault::Type { wanted: "a line of text: whose prices these are, and of when" }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_plain_numbers() {
        for (text, expected) in
            [("0.023", Some(0.023)), ("5", Some(5.0)), (" .5 ", Some(0.5)), ("-1", None), ("1e9", None), ("", None), ("nan", None)]
        {
            assert_eq!(price(&Value::Word(text.to_owned())).ok(), expected, "{text:?}");
        }
        assert_eq!(price(&Value::Other("0.0004".to_owned())).ok(), Some(0.0004), "a number in the file");
        assert!(price(&Value::Integer("9999999".to_owned())).is_err() && price(&Value::Boolean(true)).is_err());
    }
}
