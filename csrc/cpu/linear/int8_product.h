// Whether this torch has oneDNN's products of integers of 8 bits.
#pragma once

namespace consistentee {

bool has_int8_product();

}  // namespace consistentee
