"""What a report says of lungs on chest radiographs."""
