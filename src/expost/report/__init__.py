"""What people look at: pictures and self-contained report pages."""

from expost.report.page import Section, write_page
from expost.report.pictures import PICTURES, attempt, colours, grid, panels, save_panels, save_picture

__all__ = ["PICTURES", "Section", "attempt", "colours", "grid", "panels", "save_panels", "save_picture", "write_page"]
