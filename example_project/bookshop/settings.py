"""The settings of the bookshop."""

BOT_NAME = "bookshop"
SPIDER_MODULES = ["bookshop.spiders"]

# Bounds and times the item stage, and keeps the items that fail as dead letters, which are in
# .scrapy/deferkit/books.sqlite until `scrapy deferkit replay books` has delivered them.
ADDONS = {"scrapy_deferkit.Addon": 500}

# ------------------------------------------------------------------------------------------ stacks

# Requests and responses: just before the retries on a request's way out, just behind them on a
# response's way in, so that errbacks get what the retries could not mend.
DOWNLOADER_MIDDLEWARES = {"scrapy_deferkit.StackDownloaderMiddleware": 540}
DEFERKIT_REQUEST_CHAIN = ["bookshop.downloads.show_reader_card"]
DEFERKIT_RESPONSE_CHAIN = [
    "bookshop.downloads.refuse_outage",
    ("bookshop.downloads.forget_second_try", "bookshop.downloads.try_otherwise"),
]

# What the spider yields, with the response at hand.
SPIDER_MIDDLEWARES = {"scrapy_deferkit.StackSpiderMiddleware": 950}
DEFERKIT_SPIDER_STACK = "bookshop.stacks.page"

ITEM_PIPELINES = {
    "scrapy_deferkit.ChainPipeline": 100,
    "scrapy_deferkit.TolerantPipeline": 200,
    "scrapy_deferkit.ParallelPipeline": 300,
    "scrapy_deferkit.EachPipeline": 400,
    "bookshop.pipelines.PlacePipeline": 500,
    "bookshop.pipelines.LabelPipeline": 600,
    "bookshop.pipelines.SQLitePipeline": 900,
    "scrapy_deferkit.StackPipeline": 950,
}

# One after the other.
DEFERKIT_CHAIN = [
    "bookshop.processors.require_upc",
    "bookshop.processors.tidy_title",
    "bookshop.processors.tidy_description",
    "bookshop.services.FetchTax",
]

# One after the other, each with what to do when it fails.
DEFERKIT_TOLERANT = [
    ("bookshop.processors.read_price", "bookshop.processors.price_from_table"),
    ("bookshop.processors.check_price", "bookshop.processors.leave_unpriced"),
    ("bookshop.processors.read_rating", "bookshop.processors.leave_unrated"),
    ("bookshop.processors.read_stock", "bookshop.processors.call_it_sold_out"),
]

# At the same time; what they change is merged.
DEFERKIT_PARALLEL = ["bookshop.stacks.reviews", "bookshop.stacks.offers"]

# For each element of a list.
DEFERKIT_EACH = [
    {
        "field": "reviews",
        "processor": "bookshop.processors.check_review",
        "on_error": "bookshop.processors.keep_the_words",
    },
    {
        "field": "offers",
        "processor": "bookshop.services.LookUpSeller",
        "on_error": "bookshop.processors.name_unknown_seller",
        "concurrency": 4,
    },
]

# Any stack; this one notes the price of what has been stored.
DEFERKIT_STACK = "bookshop.stacks.price_history"

# ---------------------------------------------------------------------------------------- the shop

BOOKSHOP_DB = "books.db"
BOOKSHOP_SITE_DELAY = 0.3  # what the local review service takes for an answer, in seconds
BOOKSHOP_SITE_TROUBLES: dict[str, float] = {}  # as in {"no_price": 0.5}; see bookshop/site

# ---------------------------------------------------------------------------------------- the crawl

ROBOTSTXT_OBEY = False  # a site made to be crawled, and served by whoever crawls it
CONCURRENT_REQUESTS = 16
CONCURRENT_REQUESTS_PER_DOMAIN = 16
DOWNLOAD_DELAY = 0
DOWNLOAD_TIMEOUT = 4
RETRY_TIMES = 1
COOKIES_ENABLED = False
TELNETCONSOLE_ENABLED = False
REMOTE_CONTROL_ENABLED = False

# ------------------------------------------------------------------------------- what is to be seen

EXTENSIONS = {"bookshop.summary.Summary": 500}
LOG_LEVEL = "WARNING"  # the summary prints the add-on's report, which is logged as INFO
LOG_FORMATTER = "bookshop.log.BriefLogFormatter"
DEFAULT_DROPITEM_LOG_LEVEL = "INFO"
RETRY_GIVE_UP_LOG_LEVEL = "INFO"
