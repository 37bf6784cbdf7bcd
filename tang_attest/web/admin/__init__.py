"""The admin API: operations, wire models, bearer tokens, and the OpenAPI document.

Only :data:`PREFIX` is here: the wire models take a tenth of a second to load, and most servers do not offer
this API.
"""

from typing import Final

#: Below the endpoint.
PREFIX: Final = "/admin/v1"
